"""The support of a law with an atom at its edge: [0, inf), with no bijection onto the reals."""

from typing import NoReturn

from torch.distributions import biject_to, constraints, transform_to


class NonnegativeWithAtom(constraints.greater_than_eq):
    """x >= 0, where P(x = 0) > 0.

    A transform to the real line, as NUTS, HMC and AutoGuides use, would treat the atom at 0 as a density and give
    wrong posteriors without a word, so asking for one is an error.
    """

    def __init__(self) -> None:
        super().__init__(0.0)

    def __repr__(self) -> str:
        return "GreaterThanEq(lower_bound=0.0)"


@biject_to.register(NonnegativeWithAtom)
@transform_to.register(NonnegativeWithAtom)
def _refuse(constraint: NonnegativeWithAtom) -> NoReturn:
    raise NotImplementedError(
        "A latent ZeroInflatedLogNormal has an atom at 0, so no bijection maps it to the real line, which NUTS, HMC "
        "and AutoGuides need. Split the site into a Bernoulli gate and a LogNormal:\n"
        "    from pyro_zilognormal import ZeroInflatedLogNormalReparam\n"
        '    model = pyro.poutine.reparam(model, config={"site name": ZeroInflatedLogNormalReparam()})\n'
        "An observed ZeroInflatedLogNormal needs none of this."
    )
