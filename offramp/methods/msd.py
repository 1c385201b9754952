"""MSD (Luan et al. 2019, arXiv 1911.09418, Multi-Self-Distillation): every exit learns from all others, as in MUSE.

Family: mutual. Fits: any network with 2 exits or more; features are compared where they are as wide as the final
exit's.
"""

from typing import Any

from offramp.methods._method import Method
from offramp.methods._parameters import parameters_of
from offramp.methods.muse import Settings, method


@parameters_of(Settings)
def build(**parameters: Any) -> Method:
    """Eq. 7: L = (1-a) sum_k CE_k + a T^2/(K-1) sum_{l!=k} KL_T(sg z_l -> z_k) + beta(e) sum_{k<K} |F_k - sg F_K|^2.

    a is alpha. The paper prints no values; the defaults are MUSE's. Its equations 3 and 5 both print KL(student ||
    teacher); the default is MUSE's KL(teacher || student), and `reverse_kl` follows the printed form. If nothing is
    detached, the direction does not matter. Eq. 8, the cosine schedule of beta, is a misprint, corrected here.

    Data sets:
        ImageNet: alpha .1, temperature 20
        ImageNet, MSDNet: alpha .1, temperature 20, schedule off
        CIFAR-100, ResNet152: beta_begin 1e-5, beta_end 1e-6
        CIFAR-100, wide ResNets: beta_begin 1e-5, beta_end 1e-7

    Raises:
        ValueError: if a value is out of range.
    """
    return method(Settings(name="msd", **parameters))
