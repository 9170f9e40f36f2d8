"""The features of a frozen student under several poolings and from several blocks, of one pass, side by side.

A candidate is what a head could be trained on: ``token``, ``avg`` and the other poolings of timm; ``both``, class
token and mean one after the other; ``token:N`` and ``both:N``, which have the class tokens of the last N blocks in
place of that of the last one. All are made of a few pieces, each of which is computed and stored once. A pooling of
timm is what the student gives its classifier after ``reset_classifier(num_classes, pooling)``: norms stay where they
are, before or behind the pooling, and timm notes that for the export. For the other candidates there is no plain timm
model.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..cli.forms import POOLS
from ..errors import UserError, one_line


class Candidate(NamedTuple):
    """Features that a head may be trained on.

    Args:
        columns: of the stored features, (D,), in the order in which the head sees them.
        pool: `set_pooling` makes the student the plain timm model whose classifier sees them; None for the student as
            it is, and where there is no such model.
        exportable: there is such a model.
    """

    columns: Tensor
    pool: str | None = None
    exportable: bool = True


def set_pooling(student: nn.Module, pool: str, flag: str) -> None:
    """Give a student a new head behind another pooling, in place.

    Raises:
        UserError: it has no such pooling; ``flag`` named the model.
    """
    try:
        student.reset_classifier(student.num_classes, pool)
    except Exception as error:  # each architecture refuses in its own way
        raise UserError(f"--probe-pools {pool}: {flag} has no such pooling ({one_line(error)}); it has "
                        f"{', '.join(p for p in POOLS if _has(student, p)) or 'one alone'}") from error


def _has(student: nn.Module, pool: str) -> bool:
    try:
        copy.deepcopy(student).reset_classifier(student.num_classes, pool)
    except Exception:
        return False
    return True


class Pieces(nn.Module):
    """A model without head whose output are pieces of features (B, D), one after the other, of one pass.

    Args:
        model: of timm; its pooling is another one with each piece.
        pieces: poolings, and numbers of blocks from the end.
    """

    def __init__(self, model: nn.Module, pieces: Iterable[str | int]):
        super().__init__()
        self.model, self.pieces, self.num_classes = model, list(pieces), 0
        self.pretrained_cfg = model.pretrained_cfg

    def extra_repr(self) -> str:
        """Tells stored features of other pieces apart."""
        return f"pieces={self.pieces}"

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.split(images), dim=1)

    def split(self, images: Tensor) -> list[Tensor]:
        """Return each piece, (B, its width)."""
        blocks = [piece for piece in self.pieces if isinstance(piece, int)]
        if blocks:
            final, taken = self.model.forward_intermediates(
                images, max(blocks), return_prefix_tokens=True, norm=True, output_fmt="NLC")
        else:
            final = self.model.forward_features(images)
        return [self._pooled(taken[-piece][1], "token") if piece in blocks else self._pooled(final, piece)
                for piece in self.pieces]

    def _pooled(self, states: Tensor, pool: str) -> Tensor:
        self.model.reset_classifier(0, pool)  # which has no weights once there is no classifier
        return self.model.forward_head(states, pre_logits=True)

    @torch.inference_mode()
    def on_trial(
            self, images: Tensor, candidates: Mapping[str, Sequence[str | int]], flag: str,
    ) -> tuple[Tensor, dict[str, Candidate]]:
        """Return the features of some images, and what of them each candidate has.

        Raises:
            UserError: the model of ``flag`` gives no class tokens of so many blocks.
        """
        try:
            pieces = self.split(images)
        except Exception as error:  # as above
            blocks = max((piece for piece in self.pieces if isinstance(piece, int)), default=1)
            raise UserError(f"--probe-blocks {blocks}: {flag} gives no class tokens of its last {blocks} blocks "
                            f"({one_line(error)})") from error
        columns = dict(zip(self.pieces, torch.arange(sum(p.shape[1] for p in pieces)).split(
            [p.shape[1] for p in pieces])))
        return torch.cat(pieces, dim=1), {
            name: Candidate(torch.cat([columns[p] for p in parts]), *((name, True) if name in POOLS else (None, False)))
            for name, parts in candidates.items()}
