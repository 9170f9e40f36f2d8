"""A weak teacher and a strong student in timm's own training loop.

The teacher is a run of `w2s.train` on 80 labelled digits; the loop is what timm's `train.py` does, with this project's
task.

    python examples/timm_loop.py
"""

import timm
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import accuracy

import w2s_plugins as w2s
from w2s_plugins.data import create_dataset

EPOCHS = 4


def main() -> None:
    record = w2s.train(
        config=["digits", "digits-cnn2"],
        train_slice="0:80",
        output="output/timm_loop",
        experiment="weak",
        val_interval=1000,
    )
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=10)
    data = dict(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 32, 32))
    teacher = w2s.create_teacher("output/timm_loop/weak", student, data_config=data)
    train, test = (
        create_loader(
            create_dataset("w2s/digits", None, split),
            **data,
            batch_size=32,
            num_workers=0,
            is_training=split == "train",
            use_prefetcher=False,
            hflip=0,
            color_jitter=None,
            scale=(0.7, 1),
        )
        for split in ("train", "validation")
    )

    task = w2s.WeakToStrongTask(
        student, teacher, w2s.create_loss("adaptconf"), task_loss_weight=0.0
    )
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=2e-3)
    schedule, _ = create_scheduler_v2(
        optimizer, num_epochs=EPOCHS, updates_per_epoch=len(train), step_on_epochs=False
    )
    for epoch in range(EPOCHS):
        task.train()
        task.set_progress(epoch / EPOCHS)
        for number, (images, _) in enumerate(train):
            optimizer.zero_grad()
            task(images)["loss"].backward()
            optimizer.step()
            schedule.step_update(epoch * len(train) + number + 1)

    student.eval()
    with torch.no_grad():
        right = [accuracy(student(images), labels)[0] * len(labels) for images, labels in test]
    print(f"teacher: {record['metrics']['top1']:.1f} % of 600 test images")
    print(f"student: {sum(right) / 600:.1f} %")


if __name__ == "__main__":
    main()
