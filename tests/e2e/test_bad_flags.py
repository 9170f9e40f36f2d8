"""Wrong commands, and what is said of each in one line: a table, run in this process.

What a line begins with in capitals stands for flags, see `SHORT`; behind the arrow stand parts of the message.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import train_w2s
import validate
from tests.parts import assert_says, lines, refusal
from w2s_plugins.cli import Command, parse, train_parser, validate_parser
from w2s_plugins.cli.declare import Parser
from w2s_plugins.run.lock import unlock_run
from w2s_plugins.settings.field import dest_of
from w2s_plugins.settings.rules import EXCLUSIONS
from w2s_plugins.training.frozen_part import NEEDS_IMAGES
from w2s_plugins.training.loaders import NEEDS_INDEX

SHORT = {
    "DIGITS": "--dataset w2s/digits",
    "CNN": "--dataset w2s/digits --img-size 8 --train-slice 0:64 --val-slice 0:60 --batch-size 16 --epochs 2 "
    "--warmup-epochs 0 --workers 0 --model w2s_cnn2",
    "VIT": "--dataset w2s/digits --img-size 8 --model test_vit --model-kwargs patch_size=4",
    "TAUGHT": "--dataset w2s/digits --img-size 8 --train-slice 0:64 --val-slice 0:60 --batch-size 16 --workers 0 "
    "--model w2s_cnn5 --teacher w2s_cnn2",
    "TWO_TEACHERS": "--dataset w2s/digits --img-size 8 --workers 0 --model w2s_cnn5 --teacher w2s_cnn2,w2s_cnn2 "
    "--teacher-checkpoint weak.pth,weak.pth",
    "WEAK": "--dataset w2s/digits --img-size 8 --workers 0 --model w2s_cnn2 --checkpoint weak.pth --num-classes 10",
    "SEMI": "--dataset w2s/digits --unlabeled photos --teacher resnet18 --task-loss-weight 0.5",
    "PHOTOS": "--unlabeled photos --teacher w2s_cnn2",
    "FOLDER": "--model w2s_cnn2 --img-size 8 --batch-size 4 --workers 0",
    "TAUGHT_FOLDER": "--model w2s_cnn2 --img-size 8 --batch-size 4 --workers 0 data --val-split '' --teacher w2s_cnn2 "
    "--teacher-checkpoint weak.pth",
    "SEVERAL": "--dataset w2s/digits --model w2s_cnn2 --experiment x",
    "PROTOCOL": "--dataset w2s/digits --model w2s_cnn2 --experiment x --protocol w2s --teacher w2s_cnn2",
    "W2S": "--dataset w2s/digits --img-size 8 --train-slice 0:200 --val-slice 0:60 --batch-size 16 --workers 0 "
    "--model w2s_cnn5 --teacher w2s_cnn2 --protocol w2s --experiment x",
    "FEW_SHOT_TAUGHT": "--dataset w2s/digits --img-size 8 --workers 0 --model w2s_cnn2 --val-split '' --class-list "
    "base.txt --episodic 5x1 --teacher w2s_cnn2 --teacher-checkpoint five.pth",
    "FEW_SHOT": "--dataset w2s/digits --img-size 8 --workers 0 --model w2s_cnn2 --val-split '' --class-list base.txt "
    "--few-shot-eval 5x1,3x5:50 --few-shot-split validation --few-shot-class-list novel.txt",
}
CONFIGS = """
wrong.yaml  ->  epochs: many
unknown.yaml  ->  epohcs: 1
broken.yaml  ->  epochs: [
dash.yaml  ->  warmup-epoch: 3
tagged.yaml  ->  model: !!python/object/apply:os.system ['true']
list.yaml  ->  - epochs
self.yaml  ->  config: self.yaml
null.yaml  ->  config: [own.yaml, null]
digit.yaml  ->  config: digit
clash.yaml  ->  {batch-size: 3, mixup: 0.2, model: w2s_cnn2}
loss.yaml  ->  loss: elr
nan.yaml  ->  {loss: kd, loss_kwargs: {temperature: .nan}}
weak.yaml  ->  weak_config: b.yaml
folds.yaml  ->  folds: 3
two.yaml  ->  {folds: 3, protocol: w2s}
key.yaml  ->  [{name: a}, {name: b, modle: x}]
many.yaml  ->  [{name: a}, {name: b, folds: 3}]
photo.yaml  ->  [{name: a}, {name: b, unlabeled: photo, teacher: w2s_cnn2}]
kind.yaml  ->  [{name: a}, {name: b, teacher: 'given,stag:a'}]
noise.yaml  ->  [{name: a}, {name: b, label_noise: 'symetric:0.2'}]
product.yaml  ->  [{name: a}, {name: b, initial_checkpoint: 'stage:c'}]
opt.yaml  ->  [{name: a}, {name: b, opt: adamx}]
unnamed.yaml  ->  name: x
nameless.yaml  ->  [{linear_probe: true}]
same.yaml  ->  [{name: a}, {name: a}]
tune.yaml  ->  [{name: a, tune: hed}]
later.yaml  ->  [{name: a}, {name: b, teacher: 'stage:c'}]
assign.yaml  ->  [{name: a}, {name: b, assign_by: c}]
tune_none.yaml  ->  [{name: a}, {name: b, tune_by: }]
tune_twice.yaml  ->  [{name: a}, {name: b, tune_by: [a, a]}]
tune_probe.yaml  ->  [{name: a, linear_probe: true, select_split: 0.5, select: last}, {name: b, tune_by: a}]
tune_by_probe.yaml  ->  [{name: a, tune: head, select_split: 0.5, select: last}, {name: b, tune_by: a, linear_probe: true}]
measured.yaml  ->  [{name: a, select_split: 0.5, select: last}, {name: b, tune_by: a}]
audit_other.yaml  ->  [{name: probe}, {name: all}, {audit: [probe, al]}]
audit_first.yaml  ->  [{audit: [a, b]}, {name: a}, {name: b}]
audit_twice.yaml  ->  [{name: a}, {name: b}, {audit: [a, b]}, {audit: [a, b]}]
audit_one.yaml  ->  [{name: a}, {name: b}, {audit: [a, a]}]
audit_none.yaml  ->  [{name: a}, {name: b}, {audit: []}]
audit_text.yaml  ->  [{name: a}, {name: b}, {audit: 'a, b'}]
audit_number.yaml  ->  [{name: a}, {name: b}, {audit: [a, 2]}]
audit_null.yaml  ->  [{name: a}, {name: b}, {audit: null}]
audit_named.yaml  ->  [{name: a}, {name: b}, {audit: [a, b], name: c, lr: 1}]
audit_alone.yaml  ->  [{audit: [a, b]}]
model.yaml  ->  [{name: a}, {name: b, model: 'stage:a'}]
output.yaml  ->  [{name: a, output: x}]
no_given.yaml  ->  [{name: a, teacher: given}]
owned.yaml  ->  [{name: a, teacher: w2s_cnn5}, {name: b, teacher: null}]
batch.yaml  ->  [{name: a, batch_size: 999}]
slice.yaml  ->  train_slice: 0:60
fraction.yaml  ->  weak-fraction: 20
more.yaml  ->  config: none.yaml
seed.yaml  ->  slice_seed: 1
test.yaml  ->  train_split: test
own.yaml  ->  model: w2s_cnn2
numbers.json  ->  [1, 2]
file.txt  ->  not a tar file
"""
FILES = {
    **dict(lines(CONFIGS)),
    "secret.yaml": f"wandb_tags: [hf_{34 * 'a'}]",
    "base.txt": "0\n1\n2\n3\n4",
    "novel.txt": "5\n6\n7\n8\n9",
    "other.txt": '# {"fingerprint": "xyz"}\n3\n',
    "high.txt": "3\n1197\n",
    "repeated.txt": "3\n3\n",
    "negative.txt": "-1\n",
    "word.txt": "three\n",
    "rule.txt": "# knn\n3\n",
    "twice.txt": "cat\ndog\ncat\n",
    "cut.json": '["cat", ',
    "labels.csv": "\n".join(["index,label", *(f"{number},0" for number in range(1197))]),
    "given.csv": "",
    "empty/.keep": "",
    "hollow/train/.keep": "",
    "best.pth.tar": "",
    "photos/a.txt": "",
    "output/train/done/last.pth.tar": "",
    "made/export/config.json": "",
}
# folders of classes, with four images each
IMAGES = """
data/train/a data/train/b
other/train/a other/train/b other/train/c other/validation/a other/validation/x
"""

TRAINING = """
# words and their types
DIGITS --techer resnet18  ->  unknown flag '--techer' (nearest: --teacher
DIGITS --techer=resnet18  ->  unknown flag '--techer' (nearest: --teacher
DIGITS --teach resnet18  ->  unknown flag '--teach' (nearest: --teacher
DIR extra  ->  unknown argument 'extra'
DIGITS --epochs ten  ->  --epochs: invalid int value: 'ten'
DIGITS --epochs  ->  --epochs: expected one argument
DIGITS --input-size 3 32  ->  --input-size: expected 3 arguments
DIGITS --torchscript --torchcompile  ->  not allowed with argument
DIGITS --select-split some  ->  --select-split: 'some': expected a share such as 0.1
TAUGHT --loss-kwargs temperature  ->  --loss-kwargs: 'temperature' has no value, expected KEY=VALUE

# choices
DIGITS --sched cosin  ->  --sched: unknown choice 'cosin' (nearest: cosine
DIGITS --clip-mode norms  ->  --clip-mode: unknown choice 'norms' (nearest: norm); one of norm, value, agc
DIGITS --mixup-mode half  ->  --mixup-mode: unknown choice 'half'
DIGITS --remode pixels  ->  --remode: unknown choice 'pixels' (nearest: pixel)
DIGITS --train-crop-mode rcc  ->  --train-crop-mode: unknown choice 'rcc' (nearest: rrc
DIGITS --interpolation cubic  ->  --interpolation: unknown choice 'cubic' (nearest: bicubic)
DIGITS --train-interpolation cubic  ->  --train-interpolation: unknown choice 'cubic' (nearest: bicubic)
DIGITS --dist-bn sum  ->  --dist-bn: unknown choice 'sum'
DIGITS --eval-metric top2  ->  --eval-metric: unknown choice 'top2' (nearest: top5, top1)
DIGITS --lr-base-scale log  ->  --lr-base-scale: unknown choice 'log'
DIGITS --worker-seeding none  ->  --worker-seeding: unknown choice 'none'
DIGITS --teacher-targets live  ->  --teacher-targets: unknown choice 'live' (nearest: online); one of online
DIGITS --teacher-targets cache  ->  --teacher-targets  (nearest: cached,
DIGITS --kd-loss-type mse  ->  --kd-loss-type: unknown choice 'mse'; one of kl
DIGITS --amp-dtype bfloat  ->  --amp-dtype  bfloat16
DIGITS --input-img-mode RBG  ->  --input-img-mode  nearest: RGB
DIGITS --fuser fast  ->  --fuser  'fast'  nvfuser
DIGITS --task-loss cee  ->  --task-loss: unknown choice 'cee' (nearest: ce
DIGITS --torchcompile inductr  ->  --torchcompile  nearest: inductor

# ranges
DIGITS --scale 0.5  ->  --scale: expected two numbers
DIGITS --ratio 1 1 1  ->  --ratio: expected two numbers
DIGITS --cutmix-minmax 0.5  ->  --cutmix-minmax: expected two numbers
DIGITS --cutmix-minmax 0.8 0.2  ->  --cutmix-minmax  lowest and highest
DIGITS --seed -1  ->  --seed -1: expected 0 to
DIGITS --batch-size 0  ->  --batch-size 0: expected at least 1
DIGITS --validation-batch-size 0  ->  --validation-batch-size 0: expected at least 1
DIGITS --epochs -1  ->  --epochs -1: expected at least 1
DIGITS --start-epoch -1  ->  --start-epoch -1: expected at least 0
DIGITS --grad-accum-steps 0  ->  --grad-accum-steps 0: expected at least 1
DIGITS --log-interval 0  ->  --log-interval 0: expected at least 1
DIGITS --val-interval 0  ->  --val-interval 0: expected at least 1
DIGITS --checkpoint-hist 0  ->  --checkpoint-hist 0: expected at least 1
DIGITS --nan-patience 0  ->  --nan-patience 0: expected at least 1
DIGITS --workers -1  ->  --workers -1: expected 0 to
DIGITS --clip-grad 0  ->  --clip-grad 0.0: expected at least 1e-06
DIGITS --clip-grad -1  ->  --clip-grad -1.0: expected at least 1e-06
DIGITS --train-batches-per-epoch 0  ->  --train-batches-per-epoch 0: expected at least 1
DIGITS --train-img-sizes 0 32  ->  --train-img-sizes 0: expected 1 to
DIGITS --train-img-sizes 24 32 --train-size-probs nan 1  ->  --train-size-probs nan: expected a finite
DIGITS --lr nan  ->  --lr nan: expected a finite
DIGITS --drop 2  ->  --drop 2.0: expected 0 to 1
DIGITS --smoothing 1  ->  --smoothing 1.0: expected 0 to
DIGITS --reprob 1 --recount -1  ->  --recount -1: expected 1 to 1000
DIGITS --epoch-repeats -1  ->  --epoch-repeats -1.0: expected at least 0
DIGITS --warmup-lr -1  ->  --warmup-lr -1.0: expected at least 0
DIGITS --lr-base-size 0  ->  --lr-base-size 0: expected at least 1
DIGITS --lr-noise 0 1 --lr-noise-pct 0  ->  --lr-noise-pct 0.0: expected 0.01 to 1
DIGITS --folds 1000000000000  ->  --folds 1000000000000: expected 2 to 1000
TAUGHT --teacher-checkpoint weak.pth --task-loss-weight 2  ->  --task-loss-weight 2.0 given alone
SEMI --labeled-share 1.5  ->  --labeled-share 1.5: expected 0 to 1

# files of flags
DIGITS --config none.yaml  ->  --config none.yaml: no such file
DIGITS --config wrong.yaml  ->  --config wrong.yaml: epochs: 'many' is a str, expected int
DIGITS --config unknown.yaml  ->  --config unknown.yaml: unknown key 'epohcs' (nearest: epochs
DIGITS --config broken.yaml  ->  --config broken.yaml: not a YAML file
DIGITS --config dash.yaml  ->  --config dash.yaml: unknown key 'warmup-epoch' (nearest: warmup_epochs
DIGITS --config tagged.yaml  ->  --config tagged.yaml: not a YAML file
DIGITS --config list.yaml  ->  is a list, as of stages; expected flags with values, or --stages
DIGITS --config digits-losses  ->  is a study; expected flags with values, or w2s-study run digits-losses
DIGITS --config ./brokn.yaml  ->  no such file (nearest: broken.yaml
DIGITS --config more.yaml  ->  none.yaml: no such file, named by
DIGITS --config self.yaml  ->  self.yaml: the file names itself:
DIGITS --config null.yaml  ->  is not the name of a file or a list of names
DIGITS --config digit.yaml  ->  digit: no such file, and no recipe of that name (nearest: digits
DIGITS --config clash.yaml  ->  mixup and cutmix pair samples: --batch-size and

# flags without the one they belong to
DIGITS --weak-fraction 0.4  ->  --weak-fraction 0.4 has no effect without --protocol w2s
DIGITS --weak-fraction 0  ->  --weak-fraction 0 has no effect
CNN --config weak.yaml --weak-config b.yaml  ->  --weak-config b.yaml has no effect without --protocol w2s
CNN --teacher resnet18 --config weak-labels --ceiling-config b.yaml  ->  --ceiling-config b.yaml has no effect without
DIGITS --weak-config a.yaml b.yaml  ->  --weak-config a.yaml b.yaml has no effect without --protocol w2s
DIGITS --ceiling-checkpoint run  ->  --ceiling-checkpoint run has no effect without --protocol w2s
DIGITS --few-shot-split test  ->  --few-shot-split test has no effect
DIGITS --few-shot-class-list l.txt --few-shot-eval ''  ->  --few-shot-class-list l.txt has no effect
DIGITS --queries 5  ->  --queries 5 has no effect without --few-shot-eval NxK or --episodic NxK
DIGITS --labeled-share 0.5  ->  without --task-loss-weight or --gt-loss-weight: add it
DIGITS --train-batches-per-epoch 5  ->  --train-batches-per-epoch 5 has no effect without --train-img-sizes
DIGITS --train-batch-sizes 8  ->  --train-batch-sizes 8 has no effect without --train-img-sizes
DIGITS --train-size-probs 1  ->  --train-size-probs 1.0 has no effect without --train-img-sizes
DIGITS --split-bn  ->  --split-bn has no effect without --aug-splits or --resplit
DIGITS --teacher-checkpoint weak.pth  ->  --teacher-checkpoint weak.pth has no effect without --teacher
DIGITS --select-split 0.1  ->  --select-split 0.1 has no effect without --select best

# names
CNN --model resnet81  ->  --model: unknown model 'resnet81'  nearest: resnet
CNN --model cifar_resnet21  ->  unknown model 'cifar_resnet21'  nearest: cifar_resnet
CNN --model resnet18.a1_in2k  ->  has no weights 'a1_in2k' (nearest: a1_in1k
CNN --model me/net  ->  unknown model 'me/net'; expected a name of timm, hf-hub:ORG/NAME
CNN --model ./made  ->  unknown model './made' (nearest: local-dir:made/export)
CNN --model ./best.pth.tar  ->  expected a name of timm, hf-hub:ORG/NAME, or local-dir:FOLDER of an export
CNN --model hf:vit  ->  --model: hf:vit is a model of transformers, which can be a --teacher; expected a name of timm
CNN --teacher w2s_cn5  ->  --teacher: unknown model 'w2s_cn5' (nearest: w2s_cnn5
CNN --teacher w2s_cnn2,restnet18  ->  --teacher: unknown model 'restnet18'  resnet18
CNN --teacher label:ans.csv  ->  --teacher label:ans.csv: unknown kind of teacher 'label' (nearest: labels
CNN --kd-model-name resnt18  ->  --kd-model-name: unknown model 'resnt18'  resnet18
CNN --opt adamx  ->  --opt: unknown optimizer 'adamx' (nearest: adamax
CNN --dataset w2s/digit  ->  --dataset: unknown dataset 'w2s/digit' (nearest: w2s/digits
CNN --dataset torch/cifar1000  ->  'torch/cifar1000'  nearest: torch/cifar100
CNN --dataset digits  ->  'digits'  w2s/digits
CNN --device cdua  ->  --device cdua: unknown device (nearest: c
CNN --device cuda:x  ->  --device cuda:x: unknown device (nearest: cuda
CNN --device meta  ->  --device meta: unknown device
CNN --plugins no_such_module  ->  --plugins no_such_module
CNN --plugins nowhere.py  ->  --plugins nowhere.py: no such file
CNN --device-modules nowhere  ->  --device-modules nowhere
CNN --device-modules ''  ->  --device-modules  cannot be imported
CNN --push-to-hub 'two words'  ->  not a Hub id: 'two words'  expected ORG/NAME

# losses
TAUGHT --loss adaptcnf  ->  --loss: unknown loss 'adaptcnf' (nearest: adaptconf
TAUGHT --loss 'kd + rkdd'  ->  --loss: unknown loss 'rkdd' (nearest: rkd
TAUGHT --distiller augcon  ->  'augcon'  nearest: augconf
CNN --loss bcee  ->  --loss: unknown loss 'bcee' (nearest: bce
CNN --loss kd  ->  --loss kd needs a teacher: give --teacher
TAUGHT --loss bce  ->  --loss bce  --teacher w2s_cnn2  --task-loss bce
TAUGHT --loss ce  ->  --loss ce  --teacher w2s_cnn2  --task-loss ce
TAUGHT --kd-model-name resnet18  ->  --kd-model-name cannot be combined with --teacher
CNN --kd-model-name resnet18 --loss kd  ->  --kd-model-name cannot be combined with --loss
TAUGHT --loss kd --loss-kwargs temprature=1  ->  loss 'kd' has no kwarg 'temprature' (nearest: temperature
TAUGHT --loss-kwargs temperature=hot  ->  loss 'adaptconf': temperature='hot': expected a number > 0
TAUGHT --loss kd --loss-kwargs temperature=0  ->  loss 'kd': temperature=0: expected a number > 0
TAUGHT --loss kd+rkd --loss-kwargs rkd.weight=-  ->  loss 'kd+rkd': rkd.weight='-': expected a finite number
TAUGHT --loss balanced_elr --loss-kwargs shares=[0.0,1.0]  ->  expected a list, each a number > 0
TAUGHT --loss adaptconf+kd --loss-kwargs temperature=1  ->  no kwarg 'temperature' (nearest:  kd.temperature
TAUGHT --loss adaptconf+kd --loss-kwargs kd.temprature=1  ->  no kwarg 'kd.temprature' (nearest: kd.temperature
TAUGHT --loss adaptconf+kd --loss-kwargs dk.weight=1  ->  no kwarg 'dk.weight' (nearest: kd.weight
TAUGHT --loss adaptconf+kd --loss-kwargs kd.weight=much  ->  kd.weight='much': expected a finite number
TAUGHT --loss adaptconf+kd --loss-kwargs kd.temperature=hot  ->  loss 'kd': temperature='hot': expected a number > 0
TAUGHT --loss adaptconf+kdd  ->  unknown loss 'kdd' (nearest: kd
TAUGHT --loss kd+kd  ->  'kd' twice
TAUGHT --config nan.yaml  ->  temperature=nan: expected a number > 0
TAUGHT --loss kd --loss-kwargs logit_standardization=1  ->  expected bool
TAUGHT --loss kd --loss-kwargs student_stages=[1]  ->  loss 'kd' compares no features: leave out student_stages
TAUGHT --loss fitnet --loss-kwargs student_stages=one  ->  student_stages='one': expected a list, each a whole number
TAUGHT --loss gce --loss-kwargs q=1.5  ->  expected a number in (0, 1]
TAUGHT --loss elr --loss-kwargs beta=1.0  ->  expected a number in [0, 1)
TAUGHT --loss jsd_kd --loss-kwargs beta=0  ->  expected a number in (0, 1)
TAUGHT --loss mlkd --loss-kwargs temperatures=[4.0,-1.0]  ->  expected a tuple, each a number > 0 or a list
TAUGHT --loss mlkd --loss-kwargs temperatures=[]  ->  expected a tuple, each a number > 0
TAUGHT --loss bootstrap --loss-kwargs beta=2  ->  expected a number in [0, 1] or None
TAUGHT --loss confidence_mask --loss-kwargs source=student_  ->  expected one of either, teacher, student
TAUGHT --loss logconf --loss-kwargs form=binry  ->  expected one of auto, binary, multiclass

# values with a form
CNN --episodic 5  ->  --episodic 5: expected WAYSxSHOTS
CNN --few-shot-eval 5  ->  --few-shot
CNN --few-shot-eval 1x5  ->  --few-shot
CNN --few-shot-eval 5x0  ->  --few-shot
CNN --few-shot-eval 5x1,  ->  --few-shot
CNN --few-shot-eval 5x1,5x1  ->  --few-shot
CNN --clean-select knn:0  ->  --clean-select knn:0: expected knn:K
CNN --clean-select entropy:0  ->  --clean-select entropy:0:  expected knn:K
CNN --clean-select confidence:0.9  ->  --clean-select confidence:0.9:  expected knn:K
CNN --clean-select knn  ->  --clean-select knn:  expected knn:K
CNN --clean-select knn:2.5  ->  --clean-select knn:2.5:  expected knn:K
CNN --clean-select file:  ->  --clean-select file::  expected knn:K
CNN --clean-select entropy:nan  ->  --clean-select entropy:nan:  expected knn:K
CNN --clean-select kn:3  ->  --clean-select kn:3:  expected knn:K
CNN --label-noise symetric:0.2  ->  --label-noise symetric:0.2: unknown kind  expected symmetric:R
CNN --label-noise symmetric:  ->  --label-noise symmetric::  expected symmetric:R
CNN --label-noise symmetric:1.5  ->  --label-noise symmetric:1.5:  expected symmetric:R
CNN --label-noise asymmetric:1:x  ->  --label-noise asymmetric:1:x:  expected symmetric:R
CNN --label-noise labels:  ->  --label-noise labels::  expected symmetric:R
DIGITS --long-tail 5:4  ->  --long-tail 5:4: expected one of auto, always, never
DIGITS --long-tail 0:4  ->  --long-tail 0:4: expected one of auto, always, never
DIGITS --long-tail 5  ->  --long-tail 5: expected one of auto, always, never
DIGITS --long-tail alwys  ->  --long-tail alwys: expected one of auto, always, never
DIGITS --long-tail alway  ->  always, never (nearest: always), or FEW:MANY
CNN --tune heads  ->  --tune heads: expected one of all, head
CNN --tune lst:2  ->  --tune lst:2: expected one of all, head, norm, bias, last:N, last:SHARE, lora
CNN --tune last:0.0  ->  --tune last:0.0: expected one of all
CNN --tune last:1.5  ->  --tune last:1.5: expected one of all
CNN --tune last:0  ->  --tune last:0: expected one of all
CNN --tune last:-1  ->  --tune last:-1: expected one of all
CNN --select best --select-split 1.5  ->  --select-split 1.5: expected a share between 0 and 1,
CNN --select best --select-split 0  ->  --select-split 0: expected a share between 0 and 1,

# what does not go together: of the model and its views
CNN --naflex-loader  ->  --naflex-loader
CNN --torchscript  ->  use --torchcompile
CNN --amp --model-dtype bfloat16  ->  --amp keeps the weights in float32
CNN --aug-splits 3 --mixup 0.2  ->  --aug-splits cannot be combined with --mixup
CNN --aug-splits 3 --cutmix 1  ->  --aug-splits cannot be combined with --mixup
CNN --aug-splits 3 --cutmix-minmax 0.2 0.8  ->  --aug-splits cannot be combined with --mixup
CNN --aug-splits 3 --no-aug  ->  --aug-splits cannot be combined with --no-aug
CNN --aug-splits 3 --no-prefetcher  ->  --aug-splits cannot be combined with --no-prefetcher
CNN --aug-splits 2 --train-img-sizes 24 32  ->  --aug-splits cannot be combined with --train-img-sizes
TAUGHT --aug-splits 2 --teacher-targets cached  ->  --aug-splits cannot be combined with --teacher-targets cached
CNN --jsd-loss  ->  --aug-splits 0: expected 0 or at least 2, with the jsd criterion at least 2
CNN --aug-splits 1  ->  --aug-splits 1: expected 0 or at least 2
CNN --split-bn --aug-splits 2 --sync-bn  ->  --split-bn cannot be combined with --sync-bn
CNN --split-bn --aug-splits 2 --tune head  ->  --split-bn cannot be combined with --tune
CNN --mixup 0.2 --batch-size 5  ->  --batch-size and --train-batch-sizes must be even
CNN --cutmix-minmax 0.2 0.8 --batch-size 5  ->  --batch-size and --train-batch-sizes must be even
CNN --mixup 0.2 --train-img-sizes 24 32 --train-batch-sizes 8 7  ->  --train-batch-sizes must be even
TAUGHT --mixup-off-epoch 1 --teacher-targets cached-views:2  ->  cached-views:N cannot be combined with
CNN --train-img-sizes 24 32 --train-batch-sizes 8  ->  expected as many numbers as --train-img-sizes
CNN --train-img-sizes 24 32 --train-size-probs 1  ->  expected as many numbers as --train-img-sizes
CNN --train-img-sizes 24 32 --train-size-probs 0 0  ->  --train-size-probs: expected
CNN --finetune a.pth --initial-checkpoint b.pth  ->  --finetune cannot be combined with --initial-checkpoint
CNN --resume auto  ->  name it with --experiment

# of teachers and labels
TAUGHT --refine-labels  ->  --refine-labels is fitted to stored answers
CNN --task-loss-weight 0  ->  without a teacher nothing is left to learn from
CNN --clean-select knn:5 --clean-select-model labels:x.csv  ->  labels cannot be asked about images
TAUGHT --teacher-checkpoint a.pth,b.pth  ->  1 models  2 files
SEMI --mixup 0.2  ->  labelled samples in the batches of --unlabeled cannot be combined with --mixup and --cutmix
SEMI --train-img-sizes 24 32  ->  labelled samples in the batches of --unlabeled cannot be combined with
SEMI --episodic 5x1  ->  --unlabeled cannot be combined with --episodic: its images have no labels
SEMI --linear-probe  ->  --linear-probe cannot be combined with labelled samples in the batches of --unlabeled
PHOTOS --teacher '' --model w2s_cnn2  ->  images without labels need a teacher
PHOTOS --task-loss-weight 0.5  ->  cannot be combined with --task-loss-weight: its images
PHOTOS --gt-loss-weight 1  ->  cannot be combined with --task-loss-weight: its images
PHOTOS --label-noise symmetric:0.2  ->  cannot be combined with --label-noise: its images
PHOTOS --clean-select knn:5  ->  cannot be combined with --clean-select by labels: its images
PHOTOS --class-map x.txt  ->  cannot be combined with --class-map: its images
PHOTOS --data-dir . --long-tail always  ->  cannot be combined with --long-tail always: its images
PHOTOS --episodic 5x1  ->  cannot be combined with --episodic: its images
PHOTOS --few-shot-eval 5x1  ->  cannot be combined with --few-shot-eval: its images
PHOTOS --val-split validation  ->  give a labelled split by --data-dir or --dataset
SEMI --dataset ''  ->  --unlabeled without --data-dir or --dataset cannot be combined with --task-loss-weight: its

CNN --label-noise asymmetric:0.4  ->  known for CIFAR-10 and CIFAR-100 only; expected pairflip:R, or labels:FILE
CNN --noise-seed -1  ->  --noise-seed -1: expected 0 to
CNN --clean-select knn:10  ->  needs a model that decides: --clean-select-model NAME, or a --teacher
CNN --clean-select knn:3 --clean-select-model w2s_cnn22  ->  unknown model 'w2s_cnn22' (nearest: w2s_cnn2
CNN --clean-select knn:3 --clean-select-model weak.pth  ->  --clean-select-model: unknown model
CNN --clean-select knn:3 --clean-select-model empty  ->  the folder has no export
CNN --clean-select file:other.txt  ->  it was made for other training data
CNN --clean-select file:high.txt  ->  indices from 3 to 1197; the training split has 0 to 1196
CNN --clean-select file:negative.txt  ->  indices from -1 to -1
CNN --clean-select file:word.txt  ->  expected an index a line
CNN --clean-select file:rule.txt  ->  expected an index a line
CNN --clean-select file:given.csv  ->  none of its 0 samples is in the training set of 64
CNN --clean-select-model w2s_cnn2  ->  has no effect without --clean-select
TWO_TEACHERS --clean-select knn:3  ->  name one model with --clean-select-model
CNN --teacher labels:labels.csv?confidence=0  ->  a confidence below chance; of 10 classes expected
CNN --teacher labels:labels.csv?combin=mean  ->  unknown setting 'combin' (nearest: combine
CNN --teacher labels:labels.csv?combine=dawid-sken  ->  dawid-skene, dawid-skene-pooled, auto (nearest: dawid-skene
CNN --teacher labels:labels.csv?missing=all  ->  missing=all: expected one of skip, error
CNN --teacher labels:labels.csv --teacher-targets online  ->  --teacher-targets online: labels
CNN --teacher labels:labels.csv --loss fitnet  ->  needs the features of student and teacher
CNN --teacher labels:labels.csv --protocol w2s --weak-fraction 0.2 --experiment x  ->  labels in a file say nothing
TAUGHT --refine-labels --teacher-targets cached --loss fitnet  ->  without --linear-probe and --refine-labels
TAUGHT --teacher-targets cached-views:2 --reprob 0.5 --resplit  ->  --resplit
TAUGHT --teacher-targets cached-views:2 --train-img-sizes 8 16  ->  --train-img-sizes
TAUGHT --teacher-targets cached-views:10000  ->  unknown choice 'cached-views:10000'
TAUGHT --teacher-targets cached-views:2 --loss fitnet  ->  use --teacher-targets online
TAUGHT --teacher-checkpoint weak.pth --teacher-targets cached --target-cache /proc/none  ->  : cannot be written

# of a student of which a part is trained
CNN --tune lora:rnk=4  ->  --tune lora:rnk=4: unknown setting 'rnk' (nearest: rank)
CNN --tune lora:rank=0  ->  --tune lora:rank=0: rank=0: expected a whole number of at least 1
CNN --tune lora:alpha=high  ->  alpha=high: expected a number above 0
CNN --tune lora:kind=dorra  ->  kind=dorra: expected one of lora, dora, rslora
VIT --tune last:9  ->  --tune last:9: --model test_vit has 6 blocks
VIT --tune lora:targets=head  ->  --tune lora:targets=head: --model test_vit has no such linear layer
VIT --tune lora:targets=norm1  ->  --tune lora:targets=norm1: --model test_vit has no such linear layer
VIT --tune lora:targets=qvk  ->  has no such linear layer or convolution (nearest: qkv)
TAUGHT --tune head --loss fitnet --task-loss-weight 0  ->  on features does not reach the head
CNN --linear-probe --tune last:1  ->  --linear-probe cannot be combined with --tune: it trains one linear layer
TAUGHT --linear-probe --loss fitnet  ->  --loss fitnet needs the features of student and teacher
TAUGHT --linear-probe --teacher-targets online  ->  say once what an image is: leave the flag out
CNN --linear-probe --model deit_tiny_distilled_patch16_224 --img-size 32  ->  is not one linear layer

# of episodes
FEW_SHOT --few-shot-eval 6x1  ->  --few-shot-eval 6x1  6 ways are more than the 5 classes  at most 5x1
FEW_SHOT --few-shot-eval 5x1 --queries 70  ->  class '8' has  1 shot(s) + 70 queries  --queries of
FEW_SHOT --few-shot-split novell  ->  --few-shot-split novell  train and validation
FEW_SHOT --episodic 5x1 --queries 400  ->  --episodic 5x1  400 queries
FEW_SHOT --episodic 5x1,5x5  ->  episodes of one shape
FEW_SHOT --episodic 5x1 --val-split validation  ->  --val-split validation  --few-shot-eval
FEW_SHOT_TAUGHT --loss sop  ->  --loss sop  memory by sample  adaptconf

# of evaluation and selection
CNN --select best --val-split ''  ->  --select best needs
TAUGHT --select best --select-split 0.1 --task-loss-weight 0 --no-teacher-eval  ->  leave out --no-teacher-eval
CNN --eval-metric agreement  ->  --eval-metric agreement asks a --teacher
CNN --eval-metric agreement --teacher labels:x.csv  ->  labels with a part that --select-split holds out
TAUGHT --eval-metric agreement --no-teacher-eval  ->  without --no-teacher-eval
CNN --eval-metric few-shot  ->  --eval-metric few-shot needs --few-shot-eval NxK

# recipes that make no sense together
--data-dir data --config paper-adaptconf  ->  --loss adaptconf needs a teacher
--data-dir data --config no-ground-truth  ->  without a teacher nothing is left to learn from
--data-dir data --config cifar100-v1 paper-kd  ->  --loss kd needs a teacher
--data-dir data --config cifar100-vgg8-vgg13 --loss ce  ->  or --teacher ''
--data-dir data --config cifar100-vgg8-vgg13 ceiling --teacher-checkpoint a  ->  has no effect without
--data-dir data --config noisy-cifar10-preact18-preact34 ceiling  ->  --clean-select knn:250 needs a model that decides
--data-dir data --config cifar100-vgg8-vgg31  ->  (nearest: cifar100-vgg8-vgg13

# of a student in parts
TAUGHT --fsdp --opt muon  ->  the step of --opt muon is not that of its parts
TAUGHT --fsdp --clip-grad 1 --clip-mode agc  ->  --fsdp cannot be combined with --clip-mode agc
TAUGHT --fsdp --sync-bn --device cpu  ->  --fsdp cannot be combined with --sync-bn
TAUGHT --fsdp --model-ema --model-dtype bfloat16  ->  cannot be combined with --model-ema with
TAUGHT --fsdp --few-shot-eval 5x1  ->  --fsdp cannot be combined with --few-shot-eval
DIGITS --teacher resnet18 --fsdp --episodic 5x1  ->  cannot be combined with --episodic
CNN --fsdp --kd-model-name resnet18  ->  --fsdp cannot be combined with --kd-model-name

# the data
--model w2s_cnn2  ->  no data: give --data-dir FOLDER  IMAGENET_DIR  --dataset w2s/digits
--model w2s_cnn2 --dataset digits  ->  (nearest: w2s/digits
--model w2s_cnn2 --dataset torch/cifar11  ->  (nearest: torch/cifar1
--model w2s_cnn2 --dataset cifar10  ->  (nearest: torch/cifar10
--model w2s_cnn2 --dataset torch/cifar10  ->  --dataset torch/cifar10 needs --data-dir
--model w2s_cnn2 --data-dir photo  ->  --data-dir photo: no such folder (nearest: photos
--unlabeled photo --teacher labels:given.csv --model w2s_cnn2  ->  --unlabeled photo: no such folder or tar file
CNN --teacher labels:give.csv  ->  --teacher labels:give.csv: no such file (nearest: given.csv
CNN --experiment done  ->  the run folder output/train/done exists already
CNN --val-split validatoin  ->  --val-split validatoin  train and validation
CNN --train-slice 0.5:0.2  ->  --train-slice 0.5:0.2  A < B
CNN --train-slice 0:5000  ->  --train-slice 0:5000: the split has only 1197 samples
CNN --train-slice half  ->  --train-slice half  A:B
CNN --train-slice 1197:  ->  no sample is left of 1197
CNN --train-slice 0:0.0001  ->  no sample is left of 1197
CNN --val-slice 9:3  ->  --val-slice 9:3: the slice is empty
CNN --class-list miniimagenet/novell  ->  --class-list miniimagenet/novell: no such file (nearest: miniimagenet/nov
CNN --batch-size 100  ->  --batch-size 100  64
CNN --num-classes 7  ->  --num-classes 7  10 classes
CNN --cutmix-minmax 0.5 0.55  ->  --cutmix-minmax 0.5 0.55  at 8 x 8
CNN --aa foo  ->  Unknown AA policy foo
CNN --aa rand-m9-foo1  ->  Unknown RandAugment config section
CNN --color-jitter=-1  ->  --color-jitter -1.0: expected at least 0
CNN --train-img-sizes 24 32 --train-size-schedule progressive --train-size-random-mix 2  ->  2.0: expected 0 to 1
CNN --gaussian-blur-prob 1  ->  no training view can be made  Padding  --img-size
CNN --input-img-mode I --in-chans 1  ->  no training view can be made  wrong mode  --input-img-mode
CNN --input-img-mode RGBX  ->  --input-img-mode RGBX  4 channels  takes 3  --in-chans 4
CNN --in-chans 2  ->  --input-img-mode L: its images have 1 channel, and the model takes 2 (--in-chans 1)
CNN --tta 16  ->  --tta 16  a batch of 12  --validation-batch-size

# folders of images, and their classes
FOLDER dataa  ->  --data-dir dataa: no such folder (nearest: data
FOLDER dataa --dataset torch/image_folder  ->  --data-dir dataa: no such folder (nearest: data
FOLDER empty  ->  --data-dir empty  it has nothing; name another
FOLDER data  ->  'validation'  it has train  --val-split
FOLDER data --dataset torch/image_folder  ->  no folder of the split 'validation'  it has train  --val-split
FOLDER data --val-split test  ->  no folder of the split 'test'
FOLDER hollow --val-split ''  ->  --data-dir hollow  'train'
FOLDER file.txt  ->  --data-dir file.txt
FOLDER data --train-split trian  ->  'trian'  it has train  --train-split
FOLDER other  ->  different classes  'x' of 'validation' is none of the 3
FOLDER other --num-classes 5 --val-split ''  ->  --num-classes 5  3 classes
TAUGHT_FOLDER  ->  --teacher w2s_cnn2  10 classes  student 2

# files and folders of weights
CNN --teacher w2s_cnn2 --teacher-checkpoint empty  ->  --teacher-checkpoint empty: the folder has no checkpoint
CNN --teacher w2s_cnn2  ->  --teacher w2s_cnn2  no pretrained weights
CNN --teacher local-dir:empty  ->  --teacher local-dir:empty  config.json
CNN --teacher empty  ->  --teacher empty  no export (config.json)
CNN --model local-dir:empty  ->  local-dir:empty  config.json
CNN --resume empty  ->  --resume empty  no checkpoint
CNN --resume nowhere  ->  --resume nowhere  no such file
CNN --initial-checkpoint vit.pth  ->  --initial-checkpoint vit.pth: 0 matched  missing  unexpected  does not fit
CNN --teacher w2s_cnn2 --teacher-checkpoint vit.pth  ->  --teacher-checkpoint vit.pth: 0 matched  does not fit
CNN --initial-checkpoint wide.pth  ->  wide.pth: 0 matched  mismatched  does not fit  expected (
CNN --pretrained-path vit.pth  ->  --pretrained-path vit.pth  none of its tensors
CNN --resume vit.pth  ->  --resume vit.pth: not a training checkpoint
CNN --output file.txt  ->  --output  file.txt  cannot be written to
CNN --output file.txt/deeper  ->  --output  file.txt  cannot be written to
CNN --output /proc/none  ->  --output /proc/none  cannot be written to

# what timm and torch say
CNN --model-kwargs widht=3  ->  --model w2s_cnn2  widht
CNN --model-kwargs flag=1  ->  --model w2s_cnn2  flag
CNN --model-kwargs pretrained=True  ->  --pretrained
CNN --opt-kwargs nesterof=1  ->  --opt sgd: cannot be created  nesterof
CNN --opt adamw --opt-betas 0.9  ->  --opt adamw
CNN --sched plateau --sched-on-updates  ->  plateau
CNN --sched wsd --decay-epochs 90  ->  --sched wsd: cannot be created  decay
CNN --model vit_tiny_patch16_224 --tune lora  ->  --model vit_tiny_patch16_224: the model takes no images of 3 x 8 x 8
CNN --model test_vit --img-size 33  ->  --model test_vit  3 x 33 x 33  divisible by patch size
CNN --model test_vit --img-size 32 --train-img-sizes 32 40  ->  --model test_vit  40
CNN --model-kwargs depht=3  ->  --model w2s_cnn2: cannot be created
CNN --mean 0.5 0.5  ->  --model w2s_cnn2: mean must have one value or 3
CNN --gp foo  ->  --model w2s_cnn2: cannot be created
CNN --initial-checkpoint /absent.pth  ->  --initial-checkpoint /absent.pth: no such file
CNN --pretrained  ->  --model w2s_cnn2: timm has no pretrained weights
FOLDER other --val-split '' --class-names a,b,cc,x  ->  has 4 names, the data has 3 classes; the class 'c'  (nearest: cc
FOLDER other --val-split '' --class-names b,aa,c  ->  none of them (nearest: aa  all of the data's names
FOLDER other --val-split '' --class-names a,b  ->  has 2 names, the data has 3 classes
FOLDER other --val-split '' --class-names ./given.csv  ->  there are none
FOLDER other --val-split '' --class-names ./twice.txt  ->  'cat' is named twice
FOLDER other --val-split '' --class-names ./numbers.json  ->  a json list of names
FOLDER other --val-split '' --class-names ./cut.json  ->  expected a text file with one name a line, or a json list
FOLDER other --val-split '' --class-names ./twic.txt  ->  no such file (nearest:  twice.txt
FOLDER other --val-split '' --class-names a,b,c,x --num-classes 3  ->  --num-classes 3 does not match
FOLDER data --val-split '' --train-split trainn  ->  no folder of the split 'trainn' (nearest: train)
FEW_SHOT --few-shot-split novel  ->  --few-shot-split

# several runs: all are checked before the first of them begins
SEVERAL --protocol w2s  ->  --protocol w2s needs a --teacher NAME
PROTOCOL --loss kdd  ->  --loss: unknown loss 'kdd' (nearest:
PROTOCOL --model resnet1  ->  --model: unknown model 'resnet1' (nearest: resnet1
PROTOCOL --val-split training  ->  that it is trained on are among the test
PROTOCOL --weak-config clash.yaml  ->  --protocol w2s, weak: mixup and cutmix pair samples: --batch-size and
PROTOCOL --controls direct --weak-fraction 0  ->  --controls direct: --weak-fraction 0 leaves no labelled part to train
PROTOCOL --weak-config folds.yaml  ->  --weak-config folds.yaml: folds is set by the protocol
W2S --teacher ''  ->  needs a --teacher
W2S --experiment ''  ->  name it with --experiment
W2S --select best  ->  would choose the checkpoint by test labels
W2S --weak-fraction 2000 --train-slice ''  ->  weak: --train-slice 0:2000: the split has only 1197
W2S --train-slice 0.2:0.6 --weak-fraction 80  ->  use one kind
W2S --train-slice 100: --weak-fraction 0.5  ->  the slice has no end
W2S --train-slice 100:150 --weak-fraction 50  ->  150:150: the slice is empty
W2S --train-slice '' --weak-fraction 1.5  ->  0.0:1.5: the slice is empty or out of range
W2S --teacher nosuch  ->  --protocol w2s, weak: --model: unknown model 'nosuch'
W2S --teacher w2s_cnn2,w2s_cnn5  ->  --protocol w2s, weak: --model: unknown model 'w2s_cnn2,w2s_cnn5'
W2S --val-split training --val-slice ''  ->  100 of the 100 samples that it is trained on are among the test
W2S --no-teacher-eval  ->  leave out --no-teacher-eval
W2S --select best --select-split 160  ->  --select-split 160: expected less than the 100 training samples
W2S --ceiling-checkpoint nowhere  ->  --ceiling-checkpoint nowhere: no result.json of a complete run there
W2S --unlabeled photos  ->  --protocol w2s: runs are compared by true labels
W2S --weak-config slice.yaml  ->  --weak-config slice.yaml: train_slice is set by the protocol
W2S --weak-config fraction.yaml  ->  --weak-config fraction.yaml: weak_fraction is set by the protocol
W2S --weak-config more.yaml  ->  --weak-config none.yaml: no such file, named by more.yaml
W2S --weak-config secret.yaml  ->  weak: --wandb-tags holds an access token
W2S --weak-fraction 40 --weak-config seed.yaml  ->  of the 40 samples that it is trained on are among the student's 160
W2S --weak-fraction 40 --weak-config test.yaml  ->  weak: --val-slice 0:60: 40 of its 60 samples are trained on
W2S --ceiling-config own.yaml  ->  --ceiling-config own.yaml: model is set by the protocol
W2S --ceiling-config slice.yaml  ->  --ceiling-config slice.yaml: train_slice is set by the protocol
W2S --ceiling-config unknown.yaml  ->  unknown key
SEVERAL --stages unnamed.yaml  ->  expected a list of stages
SEVERAL --stages weak-labels  ->  weak-labels: is flags with values; expected a list of stages, or --config weak-labels
SEVERAL --stages digits-losses  ->  is a study; expected a list of stages, or w2s-study run digits-losses
SEVERAL --stages nameless.yaml  ->  stage 1 has no name
SEVERAL --stages same.yaml  ->  two stages are named a; expected a name for each
SEVERAL --stages tune.yaml  ->  a: --tune hed: expected one of all, head
SEVERAL --stages later.yaml  ->  b: teacher: stage:c: no stage of this name comes before it
SEVERAL --stages assign.yaml  ->  b: assign_by: c: no stage of this name comes before it; before it come a
SEVERAL --stages tune_none.yaml  ->  b: tune_by: None: expected the name of an earlier stage, or a list of different ones
SEVERAL --stages tune_twice.yaml  ->  b: tune_by: ['a', 'a']: expected the name of an earlier stage, or a list of different
SEVERAL --stages tune_probe.yaml  ->  b: tune_by: a: linear_probe trains no part of a student that another one could train
SEVERAL --stages tune_by_probe.yaml  ->  --stages, b: --linear-probe cannot be combined with --tune
SEVERAL --stages measured.yaml --select-split 0.2  ->  --select-split 0.2: a measure themselves on a part of their own
SEVERAL --stages later.yaml --select-split 0.2  ->  --select-split 0.2 has no effect without --select best
SEVERAL --stages audit_other.yaml  ->  audit: al: no stage of this name (nearest: all)
SEVERAL --stages audit_first.yaml  ->  audit is item 1; expected it last, behind the stages that it is about
SEVERAL --stages audit_twice.yaml  ->  audit is item 3; expected it last
SEVERAL --stages audit_one.yaml  ->  audit: a, a; expected two stages at least
SEVERAL --stages audit_none.yaml  ->  audit: []; expected two stages at least
SEVERAL --stages audit_text.yaml  ->  audit: 'a, b'; expected a list of names of stages, such as [a, b]
SEVERAL --stages audit_number.yaml  ->  audit: ['a', 2]; expected a list of names of stages
SEVERAL --stages audit_null.yaml  ->  audit: None; expected a list of names of stages
SEVERAL --stages audit_named.yaml  ->  audit stands with name, lr; expected it alone
SEVERAL --stages audit_alone.yaml  ->  audit: a: no stage of this name
SEVERAL --stages model.yaml  ->  b: model: stage:a: a stage makes nothing of this kind
SEVERAL --stages output.yaml  ->  a: output is that of all stages
SEVERAL --stages no_given.yaml  ->  a: teacher: given: the command line has no --teacher
SEVERAL --stages owned.yaml --teacher w2s_cnn2  ->  --teacher w2s_cnn2 is for no stage: each has its own, a, b
SEVERAL --stages batch.yaml --train-slice 0:64 --batch-size 99  ->  --stages, a: --batch-size 99 is more than
SEVERAL --config two.yaml  ->  --protocol and --folds exclude each other
SEVERAL --folds 4 --train-slice 0:3 --batch-size 3  ->  --folds, fold1: --batch-size 3 is more than 2 training samples
SEVERAL --stages key.yaml  ->  --stages key.yaml: b: unknown key 'modle' (nearest: model
SEVERAL --stages many.yaml  ->  --stages many.yaml: b: folds is that of all stages
SEVERAL --stages kind.yaml --teacher w2s_cnn2  ->  --stages, b: --teacher stag:a: unknown kind of teacher
SEVERAL --stages photo.yaml  ->  --stages, b: --unlabeled photo: no such folder
SEVERAL --stages noise.yaml  ->  --stages, b: --label-noise symetric:0.2: unknown kind
SEVERAL --stages opt.yaml  ->  --stages, b: --opt: unknown optimizer 'adamx' (nearest:
SEVERAL --stages product.yml  ->  --stages product.yml: no such file (nearest: product.yaml
SEVERAL --stages product.yaml  ->  --stages product.yaml: b: initial_checkpoint: stage:c: no stage of this
SEVERAL --stages weak-labels-plus-few-true --teacher w2s_cnn2 --config loss.yaml  ->  part: --loss elr needs a teacher
"""

VALIDATION = """
--model w2s_cnn2  ->  no data: give --data-dir FOLDER
--dataset w2s/digit  ->  --dataset: unknown dataset 'w2s/digit' (nearest: w2s/digits
--data-dir data --model w2s_cnn2 --checkpoint weak.pth --num-classes 10  ->  it has train; name another one with --split
DIGITS --checkpoint bset.pth.tar  ->  --checkpoint bset.pth.tar: no such file or folder (nearest: best
DIGITS --amp --model-dtype bfloat16  ->  --amp keeps the weights in float32
DIGITS --model w2s_cnn2 --img-size 900000  ->  --img-size 900000: expected 1 to 16384
DIGITS --model ./mdae  ->  --model: unknown model './mdae' (nearest: made
out/run/exprt  ->  --data-dir out/run/exprt: no such folder
--data-dir none --model w2s_cnn2 --checkpoint weak.pth --num-classes 10  ->  --data-dir none: no such folder
DIGITS --model resnet1  ->  --model: unknown model 'resnet1' (nearest: resnet1
DIGITS --teacher w2s_cn5  ->  --teacher: unknown model 'w2s_cn5' (nearest: w2s_cnn5
DIGITS --teacher label:ans.csv  ->  --teacher label:ans.csv: unknown kind of teacher 'label' (nearest: labels
DIGITS --device cudaa  ->  --device cudaa: unknown device (nearest: cuda
WEAK --results-file labels.csv  ->  --results-file labels.csv: is there already, and not as this program has
WEAK --valid-labels base.txt  ->  --valid-labels base.txt: has 5 classes, but the data has 10; expected one line
WEAK --valid-labels high.txt  ->  --valid-labels high.txt: has 1197, but the model has 10 classes; expected numbers
WEAK --valid-labels negative.txt  ->  --valid-labels negative.txt: has -1, but the model has 10 classes
WEAK --valid-labels repeated.txt  ->  --valid-labels repeated.txt: has 3 twice; expected one line
WEAK --valid-labels word.txt  ->  --valid-labels word.txt: expected one class number a line
DIGITS --few-shot 5  ->  --few-shot 5: expected WAYSxSHOTS
DIGITS --few-shot 5x1 --teacher w2s_cnn2,w2s_cnn5  ->  --few-shot: several teachers have no common features
DIGITS --few-shot 5x1 --naflex-loader  ->  --few-shot cannot be combined with
DIGITS --few-shot 5x1 --teacher w2s_cnn2 --ceiling-acc 90  ->  --few-shot cannot be combined with  or --ceiling-acc
DIGITS --queries 5  ->  --queries 5 has no effect without --few-shot NxK: add it
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `FILES`, images and weights."""
    folder = tmp_path_factory.mktemp("wrong") / "all"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for split in IMAGES.split():
        (folder / split).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (8, 8), (60 * number, 0, 0))
            image.save(folder / split / f"{number}.png")
    weak = timm.create_model("w2s_cnn2", num_classes=10).state_dict()
    wide = {
        name: torch.cat([value, value]) if value.ndim else value for name, value in weak.items()
    }
    vit = timm.create_model("test_vit", num_classes=10, img_size=8, patch_size=4).state_dict()
    five = timm.create_model("w2s_cnn2", num_classes=5).state_dict()
    for name, state in (("weak", weak), ("five", five), ("wide", wide), ("vit", vit)):
        torch.save(state, folder / f"{name}.pth")
    return folder


@pytest.fixture
def said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable, Parser, str], str]:
    """Runs a wrong command in a copy of that folder, and returns the one line that it ends with."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)

    def run(main: Callable[[Command], object], parser: Parser, command: str) -> str:
        for short, flags in SHORT.items():
            command = re.sub(rf"^{short}\b", flags, command)
        try:
            error = refusal(lambda: main(parse(parser, shlex.split(command))))
        finally:
            unlock_run()
        named, typed = (set(re.findall(r"--[a-z][\w-]+", text)) for text in (error, command))
        assert named - typed <= {*parser.flags()}
        assert not list(Path().glob("output/train/x/*"))
        return error

    return run


@pytest.mark.parametrize(("command", "message"), lines(TRAINING))
def test_training(said: Callable, command: str, message: str) -> None:
    error = said(lambda flags: train_w2s.train_all(*flags), train_parser(), command)
    assert_says(error, *message.split("  "))


@pytest.mark.parametrize(("command", "message"), lines(VALIDATION))
def test_validation(said: Callable, command: str, message: str) -> None:
    assert_says(said(validate.main, validate_parser(), command), *message.split("  "))


OF_RULES = [
    *(what for flag in train_parser().by_dest().values() for what in flag.idle),
    *(what for rule in EXCLUSIONS for what in (rule.flag, *rule.others)),
    *(what for term in (NEEDS_IMAGES, NEEDS_INDEX) for what in term),
]


@pytest.mark.parametrize("name", sorted({what for what in OF_RULES if isinstance(what, str)}))
def test_rules_are_about_flags_that_there_are(name: str) -> None:
    assert dest_of(name.split()[0]) in train_parser().by_dest()
