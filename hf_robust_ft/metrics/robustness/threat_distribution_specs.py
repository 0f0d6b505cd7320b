"""How a distribution of eps is written, on a command line or in a report."""

from collections.abc import Mapping
from dataclasses import fields

from .curve import parse_number
from .threat_distributions import Beta, Dirac, ThreatDistribution, TruncatedNormal, Uniform, Weights

DISTRIBUTIONS = {"uniform": Uniform, "beta": Beta, "truncnorm": TruncatedNormal, "dirac": Dirac, "weights": Weights}


def parse_distribution(spec: str | Mapping[float | str, float], eps_g: float) -> ThreatDistribution:
    """Read "uniform", "beta:A,B", "truncnorm:MEAN,STD", "dirac:EPS", "weights:EPS=WEIGHT,..." or {EPS: WEIGHT, ...}.

    Args:
        spec: a key of `DISTRIBUTIONS` and its parameters, numbers or fractions ("4/255"); or any distribution on
            finitely many eps as a mapping from eps to its weight.
        eps_g: the largest budget, in pixel units of [0, 1].

    Raises:
        ValueError: an unknown name, a missing or extra parameter, no number, or a value the distribution refuses.

    >>> parse_distribution("beta:2,5", eps_g=1.0)
    Beta(a=2.0, b=5.0, eps_g=1.0)
    >>> parse_distribution({0: 1, 0.5: 3}, eps_g=1.0)
    Weights(epsilons=(0.0, 0.5), weights=(0.25, 0.75), eps_g=1.0)
    """
    text = distribution_spec(spec)
    name, colon, parameters = text.partition(":")
    values = parameters.split(",") if colon else []
    if name == "weights" and values and all(value.count("=") == 1 for value in values):
        pairs = [[_parse_number(number, text) for number in value.split("=")] for value in values]
        return Weights(*zip(*pairs, strict=True), eps_g)
    wanted = {key: [field.name for field in fields(cls)][:-1] for key, cls in DISTRIBUTIONS.items() if cls != Weights}
    if name not in wanted or len(values) != len(wanted[name]):
        raise _no_distribution(spec)
    return DISTRIBUTIONS[name](*(_parse_number(value, text) for value in values), eps_g)


def distribution_spec(spec: str | Mapping[float | str, float]) -> str:
    """The name of a distribution in reports: the text it was given as; a mapping's is "weights:EPS=WEIGHT,...".

    Raises:
        ValueError: neither a text nor a mapping.

    >>> distribution_spec({0: 1, 2 / 255: 3})
    'weights:0=1,2/255=3'
    """
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, Mapping):
        raise _no_distribution(spec)
    return "weights:" + ",".join(f"{_number(eps)}={_number(weight)}" for eps, weight in spec.items())


def _no_distribution(spec: object) -> ValueError:
    valid = "uniform; beta:A,B; truncnorm:MEAN,STD; dirac:EPS; weights:EPS=WEIGHT,... or {EPS: WEIGHT, ...}"
    return ValueError(f"{spec!r} is no distribution of eps with its parameters. Valid: {valid}.")


def _number(value: float | str) -> str:
    """A number as text that `_parse_number` reads back equal, in 255ths where it is one."""
    if isinstance(value, str):
        return value.strip()
    try:
        number = parse_number(value)
    except ValueError as error:
        raise ValueError(f"In weights of eps, {error}") from None
    if number.is_integer():
        return str(int(number))
    in_255ths = round(number * 255) if abs(number) < 1 else 0
    return f"{in_255ths}/255" if in_255ths / 255 == number else repr(number)


def _parse_number(text: str, spec: str) -> float:
    try:
        return parse_number(text)
    except ValueError as error:
        raise ValueError(f"In the distribution {spec!r}, {error}") from None
