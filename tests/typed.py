"""What a user may write with the public names, for a type checker (CONTRIBUTING.md); never run."""

from pathlib import Path
from typing import Any

from torch import Tensor

import w2s_plugins as w2s

record: dict[str, Any] = w2s.train(model="resnet18", epochs=3)
record = w2s.train(
    config=["digits", Path("mine.yaml")],
    teacher=Path("run"),
    data_dir="photos",
    lr=1e-3,
    pretrained=True,
    loss_kwargs={"temperature": 2},
    mixup=0.2,
)
record = w2s.protocol(config="digits-cnn2-cnn5", experiment="digits", resume="auto")
# an ignore that silences nothing is an error: these are refused
w2s.train(epochs="3")  # pyright: ignore[reportArgumentType]
w2s.train(pretrained=1)  # pyright: ignore[reportArgumentType]
w2s.train(modl="resnet18")  # pyright: ignore[reportCallIssue]
w2s.protocol(experiment="digits", tsak="multilabel")  # pyright: ignore[reportCallIssue]
w2s.predict("run", "photos", top_k="5")  # pyright: ignore[reportArgumentType]
w2s.predict("run", "photos", top=5)  # pyright: ignore[reportCallIssue]
rows: list[dict[str, Any]] = w2s.predict("run", Path("photos"), top_k=5, all=True)
table: Path = w2s.predict("run", "photos", "labels.csv")
table = w2s.predict("run", "photos", features=Path("features.npz"))
student = w2s.load_student(Path("run"))
names: list[str] | None = student.class_names


def function(images: Tensor) -> Tensor:
    """Return logits."""
    return images


for teacher in (
    w2s.create_teacher("resnet18", student),
    w2s.create_teacher([function, "run"], student),
    function,
):
    task = w2s.WeakToStrongTask(
        student, teacher, w2s.create_loss("kd", temperature=2.0), task_loss_weight=0.0
    )
    loss: Tensor = task(function(student(Tensor())))["loss"]
