"""A weak teacher and a strong student in a plain PyTorch loop.

The teacher is a logistic regression that has seen 80 labelled digits of scikit-learn; any function from a batch of
images to logits (B, C) can be one. The student sees the other images, and what the teacher says of them.

    python examples/pytorch_loop.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import w2s_plugins as w2s

EPOCHS = 10


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    images, truth = torch.tensor(pixels / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
    weak = LogisticRegression().fit(pixels[:80] / 16, labels[:80])

    def teacher(batch: Tensor) -> Tensor:
        return torch.tensor(weak.predict_log_proba(batch.flatten(1).numpy())).float()

    student = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    student.num_classes = 10  # of the losses, some ask for it
    loss = w2s.create_loss("adaptconf")
    task = w2s.WeakToStrongTask(
        student, teacher, loss, task_loss_weight=0.0
    )  # 0: ground truth is not used
    optimizer = torch.optim.AdamW(task.trainable_module.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(images[80:1200]), batch_size=32, shuffle=True)

    for epoch in range(EPOCHS):
        task.train()
        task.set_progress(epoch / EPOCHS)
        for (batch,) in loader:
            result = task(batch)  # loss, the student's output, and each term of the loss
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()

    student.eval()
    with torch.no_grad():
        for name, model in (("teacher", teacher), ("student", student)):
            right = model(images[1200:]).argmax(dim=1) == truth[1200:]
            print(f"{name}: {100 * right.float().mean():.1f} % of {len(right)} test images")


if __name__ == "__main__":
    main()
