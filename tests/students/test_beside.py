"""Classifiers beside a probe, against other implementations."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from w2s_plugins.students import beside


@pytest.fixture
def blobs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (300,), generator=generator)
    centres = torch.randn(5, 8, generator=generator)
    samples, queries = (centres[rows] + 1.2 * torch.randn(len(rows), 8, generator=generator)
                        for rows in (labels, torch.arange(200) % 5))
    return samples, labels, queries


@pytest.mark.parametrize("chunk", [beside._CHUNK, 1000])
def test_nearest_neighbours(blobs: tuple, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(beside, "_CHUNK", chunk)
    samples, labels, queries = (part.double().numpy() for part in blobs)
    expected = []
    for query in queries:
        cosines = samples @ query / np.linalg.norm(samples, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:20]
        expected.append(max(range(5), key=lambda c: np.exp(cosines[nearest][labels[nearest] == c] / 0.07).sum()))
    assert beside.knn(*blobs).tolist() == expected
    assert len(set(expected)) == 5 and beside.knn(blobs[0][:3], blobs[1][:3], blobs[2]).shape == (200,)


def test_logistic_regression(blobs: tuple) -> None:
    samples, labels, queries = (part.numpy() for part in blobs)
    expected = LogisticRegression(max_iter=1000).fit(samples, labels).predict(queries)
    assert beside.logistic(*blobs).tolist() == expected.tolist()
    assert beside.logistic(blobs[0], torch.full((300,), 3), blobs[2]).eq(3).all()
