"""A weak teacher and a strong student in the Trainer of transformers (`pip install transformers accelerate`).

The teacher is a logistic regression that has seen 80 labelled digits of scikit-learn. The student, a small ResNet, sees
the other images, and what the teacher says of them.

    python examples/hf_trainer.py
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import w2s_plugins as w2s


class WeakToStrongTrainer(Trainer):
    """Trains on what ``teacher`` says of a batch, by any loss of logits."""

    teacher: Callable[[Tensor], Tensor]
    distill = w2s.create_loss("adaptconf")

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(pixel_values=inputs["pixel_values"])
        said = w2s.LossInputs(outputs.logits, self.teacher(inputs["pixel_values"]))
        loss = sum(self.distill(said).values())
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    images = (
        torch.tensor(pixels / 8 - 1).float().view(-1, 1, 8, 8)
    )  # normalised with mean and std 0.5
    weak = LogisticRegression().fit(pixels[:80] / 16, labels[:80])

    def probabilities(batch: Tensor) -> Tensor:
        """Say what the teacher thinks of images in [0, 1]."""
        return torch.tensor(weak.predict_proba(batch.flatten(1).cpu().numpy()))

    student = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=32,
            hidden_sizes=[64, 128],
            depths=[1, 1],
            layer_type="basic",
            num_labels=10,
        )
    )
    settings = TrainingArguments(
        "output/hf_trainer",
        num_train_epochs=6,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = WeakToStrongTrainer(
        student, settings, train_dataset=[{"pixel_values": i} for i in images[80:1200]]
    )
    trainer.teacher = w2s.create_teacher(
        probabilities,
        student,
        data_config=dict(mean=(0.5,), std=(0.5,), input_size=(1, 8, 8)),
        device=trainer.args.device,
    )
    trainer.train()

    student.eval()
    truth, test = torch.tensor(labels[1200:]), images[1200:].to(student.device)
    with torch.no_grad():
        for name, logits in (("teacher", trainer.teacher(test)), ("student", student(test).logits)):
            right = logits.argmax(dim=1).cpu() == truth
            print(f"{name}: {100 * right.float().mean():.1f} % of {len(right)} test images")


if __name__ == "__main__":
    main()
