"""MSD (Luan et al. 2019, arXiv 1911.09418, Multi-Self-Distillation): every exit learns from all others, as in MUSE.

Family: mutual. Fits: any network with 2 exits or more; features are compared where they are as wide as the final
exit's.
"""

from offramp.methods._feature_adapter import Adapt, Match
from offramp.methods._method import Method
from offramp.methods.muse import Features, Mutual, Schedule, Settings


def build(
    *,
    alpha: float = 0.5,
    temperature: float = 3.0,
    beta_begin: float = 1e-6,
    beta_end: float = 1e-7,
    schedule: Schedule = "cosine",
    t2: bool = True,
    detach_teachers: bool = True,
    detach_superpeer: bool = True,
    reverse_kl: bool = False,
    features: Features = "sum",
    adapt: Adapt = "off",
) -> Method:
    """Eq. 7: L = (1-a) sum_k CE_k + a T^2/(K-1) sum_{l!=k} KL_T(sg z_l -> z_k) + beta(e) sum_{k<K} |F_k - sg F_K|^2.

    The paper prints no values; these are MUSE's. Its eq. 5 prints KL(student || teacher), its eq. 3 the opposite; the
    default is MUSE's KL(teacher || student), `reverse_kl` is eq. 5 to the letter. If nothing is detached, the direction
    does not matter. Eq. 8, the cosine schedule of beta, is a misprint, here corrected.

    Args:
        alpha: a, the share of mutual learning; the labels have 1 - a, at the final exit too.
        temperature: T (tau in the paper).
        beta_begin: weight of the feature term in the first epoch.
        beta_end: weight that it approaches in the last epoch.
        schedule: cosine from begin to end, constant at beta_begin, or off (no feature term).
        t2: multiply the mutual term by T^2.
        detach_teachers: no gradient into the logits of the exit that teaches.
        detach_superpeer: no gradient into the final exit's features.
        reverse_kl: KL(student || teacher) instead of KL(teacher || student).
        features: sum of squares over batch and width, or their mean.
        adapt: features of another width are left out (off) or get a learned layer (linear); all gives every exit one.

    Data sets:
        ImageNet: alpha .1, temperature 20
        ImageNet, MSDNet: alpha .1, temperature 20, schedule off
        CIFAR-100, ResNet152: beta_begin 1e-5, beta_end 1e-6
        CIFAR-100, wide ResNets: beta_begin 1e-5, beta_end 1e-7

    Raises:
        ValueError: if a value is out of range.
    """
    settings = Settings(
        name="msd",
        alpha=alpha,
        temperature=temperature,
        beta_begin=beta_begin,
        beta_end=beta_end,
        schedule=schedule,
        t2=t2,
        detach_teachers=detach_teachers,
        detach_superpeer=detach_superpeer,
        reverse_kl=reverse_kl,
        features=features,
    )
    return Method(Mutual(settings, Match(adapt)))
