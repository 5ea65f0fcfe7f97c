"""The support of a distribution with an atom at its edge: [0, inf), with no bijection to the real line."""

from typing import Any, NoReturn

from pyro.distributions.distribution import COERCIONS
from torch import Tensor
from torch.distributions import TransformedDistribution, biject_to, constraints, transform_to
from torch.distributions.transforms import ExpTransform, Transform


class NonnegativeWithAtom(constraints.greater_than_eq):
    """x >= 0, where P(x = 0) > 0.

    NUTS, HMC and AutoGuides ask for a bijection to the real line. It would treat the atom at 0 as a density, and their
    posteriors would be wrong without a warning. So asking for one, or differentiating `transform_to`'s, is an error.
    """

    def __init__(self) -> None:
        super().__init__(0.0)

    def __repr__(self) -> str:
        return "GreaterThanEq(lower_bound=0.0)"


class _StartOnly(ExpTransform):
    """exp for constants only: Pyro's init strategies use it to start a site before a reparameterizer splits the site.

    An AutoDelta, which would optimise along it, differentiates it and is refused.
    """

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            _refuse(NonnegativeWithAtom())
        return super().__call__(x)


@transform_to.register(NonnegativeWithAtom)
def _start(constraint: NonnegativeWithAtom) -> Transform:
    return _StartOnly()


@biject_to.register(NonnegativeWithAtom)
def _refuse(constraint: NonnegativeWithAtom) -> NoReturn:
    raise NotImplementedError(
        "A latent ZeroInflatedLogNormal has an atom at 0, so no bijection maps it to the real line, which NUTS, HMC "
        "and AutoGuides need. Split the site into a Bernoulli and a LogNormal:\n"
        "    from pyro_zilognormal import ZeroInflatedLogNormalReparam\n"
        '    model = pyro.poutine.reparam(model, config={"site name": ZeroInflatedLogNormalReparam()})\n'
        "with the site's dimensions in plates rather than .to_event(), so that the Bernoulli can be enumerated. NUTS "
        "does so by itself; for an AutoGuide hide the Bernoulli site and use config_enumerate and TraceEnum_ELBO (see "
        "its docstring). An observed ZeroInflatedLogNormal needs none of this."
    )


def _refuse_transforms(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pyro's hook on each new distribution: a transform of an atom has no Jacobian, which torch would apply."""
    if not issubclass(cls, TransformedDistribution):
        return
    base: Any = args[0] if args else kwargs.get("base_distribution")
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(getattr(type(base), "support", None), NonnegativeWithAtom):
        raise NotImplementedError(
            f"A {cls.__name__} of a {type(base).__name__} would apply the transform's Jacobian to the probability of a "
            "zero, and its density would be wrong. To multiply by c, add log(c) to loc; to raise to the power a, "
            "multiply loc and scale by a."
        )


COERCIONS.append(_refuse_transforms)
