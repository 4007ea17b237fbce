"""Seeds by name: the same everywhere and for ever, another for every other name."""

import itertools

import torch

from pipeline.seeding import generator, seed_of

SEEDS: dict[tuple[int | str, ...], int] = {
    (): 6510301506637419378,
    (0,): 3581690635855307741,
    ("0",): 5199204929721980132,
    (0, "retain", 1): 6430386963516193608,
    ("a", "b"): 7071653081998898808,
}
DRAWS = [0.05466950312256813, 1.1553477048873901]  # of generator(0, "eps", "a-1", 3)


def test_seeds_are_those_of_every_earlier_run() -> None:
    """Recorded values. A change of them is a change of every number: no finished run could be continued or
    replayed."""
    assert {keys: seed_of(*keys) for keys in SEEDS} == SEEDS
    assert torch.randn(2, generator=generator(0, "eps", "a-1", 3)).tolist() == DRAWS


def test_a_number_and_its_text_are_different_names() -> None:
    assert seed_of(1) != seed_of("1")
    assert seed_of(0, "retain", 1) != seed_of("0", "retain", 1) != seed_of(0, "retain", "1")


def test_where_a_name_ends_counts() -> None:
    """The names of the same text that is cut elsewhere, ordered otherwise, or followed by an empty one."""
    names = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("c", "ab"),
        ("abc", ""),
        ("", "abc"),
        (12, 3),
        (1, 23),
        (123,),
    ]
    for one, other in itertools.combinations(names, 2):
        assert seed_of(*one) != seed_of(*other), (one, other)


def test_seeds_fill_what_a_generator_takes() -> None:
    seeds = [seed_of("range", index) for index in range(200)]
    assert len(set(seeds)) == 200 and all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62


def test_a_generator_starts_from_the_lower_32_bits() -> None:
    """As docs/numerics.md says; a torch that takes more makes other numbers of every run."""
    one, same, other = (
        torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32, 6)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
