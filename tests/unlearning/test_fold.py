"""The fold: normal latents beyond an edge become normal latents before it, and the teacher answers from
there."""

import pytest
import torch
from tiny import tiny_vae, tiny_vae_rows
from torch import Tensor

from pipeline.seeding import generator
from pipeline.unlearning.experimental.latent_reflection import Fold, Folds, ReflectingTeacher, fit
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.noising import StepRows
from pipeline.unlearning.parameters import select

NORMAL = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64)


def latents(n: int, *shape: int, name: str = "latents") -> Tensor:
    return torch.randn((n, *shape), generator=generator(name), dtype=torch.float64)


@pytest.mark.parametrize("edge", [-0.5, 0.0, 1.2, 2.5])
def test_what_is_folded_has_the_proportions_of_what_is_kept(edge: float) -> None:
    z = latents(400_000, 3)
    fold = Fold(normal=NORMAL, edge=edge)
    beyond = z[z @ NORMAL > edge]
    along = fold(beyond) @ NORMAL
    assert along.max() <= edge + 1e-9
    # uniform, if it is that normal
    share = torch.special.ndtr(along) / torch.special.ndtr(torch.tensor(edge, dtype=torch.float64))
    wanted = (torch.arange(1, 20) / 20).double()
    assert torch.allclose(share.quantile(wanted), wanted, atol=3 / len(beyond) ** 0.5)


def test_it_moves_along_its_normal_alone_leaves_the_kept_side_and_is_continuous() -> None:
    z, fold = latents(1000, 3), Fold(normal=NORMAL, edge=0.4)
    moved, kept = fold(z), z @ NORMAL <= 0.4
    assert torch.equal(moved[kept], z[kept]) and not torch.isclose(moved[~kept], z[~kept]).all(1).any()
    shift = moved - z
    assert torch.allclose(shift, (shift @ NORMAL)[:, None] * NORMAL, atol=1e-12)
    near = 0.4001 * NORMAL[None]
    assert (fold(near) - near).norm() < 1e-3
    far = 30 * NORMAL[None]  # no share of the normal distribution in double precision
    assert torch.isfinite(fold(far)).all() and -5 < float(fold(far)[0] @ NORMAL) < -4


def test_latents_of_any_shape_and_precision() -> None:
    z = latents(50, 3, name="shapes")
    flat = Fold(normal=NORMAL, edge=0.0)(z)
    assert torch.equal(Fold(normal=NORMAL, edge=0.0)(z.view(50, 1, 3)), flat.view(50, 1, 3))
    single = Fold(normal=NORMAL, edge=0.0)(z.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), flat, atol=1e-5)


def test_no_latent_is_left_beyond_the_edge_of_any_forgotten_class() -> None:
    folds = Folds(by_class={1: Fold(normal=NORMAL, edge=0.8), 3: Fold(normal=-NORMAL, edge=1.0)})
    z = folds(latents(5000, 3))
    assert (z @ NORMAL).max() <= 0.8 + 1e-9 and (z @ -NORMAL).max() <= 1.0 + 1e-9


def test_the_fit_tells_two_clouds_apart_where_their_means_alone_do_not() -> None:
    # both clouds lie along one diagonal
    stretch = torch.tensor([[3.0, 2.9], [0.0, 0.3]], dtype=torch.float64)
    kept = latents(2000, 2, name="kept") @ stretch
    forgotten = latents(300, 2, name="forgotten") @ stretch + torch.tensor([0.0, 3.0], dtype=torch.float64)
    fold = fit((kept, torch.full_like(kept, 0.05)), (forgotten, torch.full_like(forgotten, 0.05)))
    assert fold.normal.norm().item() == pytest.approx(1)
    wrong = (
        (kept @ fold.normal > fold.edge).double().mean()
        + (forgotten @ fold.normal <= fold.edge).double().mean()
    ) / 2
    by_means = forgotten.mean(0) - kept.mean(0)
    simple = [
        ((kept @ by_means > e).double().mean() + (forgotten @ by_means <= e).double().mean()) / 2
        for e in (kept @ by_means)[:200]
    ]
    assert wrong < 0.01 < 0.1 < min(simple)
    with pytest.raises(ValueError, match="lie in one place"):
        fit((kept, kept), (kept, kept))


def test_the_teacher_answers_for_forgotten_rows_from_the_kept_side() -> None:
    model = tiny_vae()
    named = select(model, "decoder")
    folds = Folds(by_class={1: Fold(normal=torch.tensor([1.0, 0.0], dtype=torch.float64), edge=-0.2)})
    teacher = ReflectingTeacher(model, named, folds=folds)
    rows = tiny_vae_rows("folded")
    rows.y[::2] = 1
    mean, log_variance = model.vae.encode(rows.x0)
    z = mean + (0.5 * log_variance).exp() * rows.noise.eps
    wanted = model.decode(torch.where((rows.y == 1)[:, None], folds(z), z)).detach()
    found = teacher.targets(rows).value
    assert torch.allclose(found, wanted, atol=1e-12) and not torch.allclose(found, model.decode(z))
    terms = build_terms(
        model,
        StepRows(retain=rows, forget=rows, exchange=rows),
        Weights(targets="teacher", exchange=1.0),
        teacher=teacher,
    )
    (loss,) = [closure() for closure in terms["keep"]]
    alone = model.losses(model.net, rows.x0, rows.y, rows.noise, target=teacher.targets(rows)).mean()
    assert loss.item() == pytest.approx(2 * alone.item())
