import torch

from hf_robust_ft.attacks.random_state import KeyedGenerator, seeded_generator

CPU = torch.device("cpu")


def drawn(generator):
    return torch.rand(4, generator=generator)


def test_what_is_drawn_depends_on_the_key_alone():
    first = drawn(seeded_generator(CPU, 3, 1))
    torch.manual_seed(5)
    assert torch.equal(drawn(seeded_generator(CPU, 3, 1)), first)
    assert not any(torch.equal(drawn(seeded_generator(CPU, *key)), first) for key in [(3, 2), (1, 3), (3, 1, 1), (3,)])


def test_under_one_key_it_goes_on_and_under_another_it_starts_anew():
    keyed, whole = KeyedGenerator(), seeded_generator(CPU, 3, 1)
    assert all(torch.equal(drawn(keyed.at(CPU, 3, 1)), drawn(whole)) for _ in range(3))
    assert torch.equal(drawn(keyed.at(CPU, 3, 2)), drawn(seeded_generator(CPU, 3, 2)))
    assert torch.equal(drawn(keyed.at(CPU, 3, 1)), drawn(seeded_generator(CPU, 3, 1)))
