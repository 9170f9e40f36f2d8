"""A kind of teacher of your own, which is named by a prefix, as CLIP is by ``clip:``.

The function gets what stands behind the colon, and a `Request` with the classes, channels, size and prompts of the run.

python train_w2s.py --plugins teacher_prefix.py --teacher mine:something ...
"""

import timm

from w2s_plugins.teachers import Opened, Request, register_teacher


@register_teacher("mine", takes_class_names=True)
def open_mine(name: str, request: Request) -> Opened:
    model = timm.create_model("resnet10t", num_classes=len(request.class_names))
    config = timm.data.resolve_data_config(model=model)
    note = {"file": name}  # for result.json
    return Opened(model, config, list(request.class_names), note)
