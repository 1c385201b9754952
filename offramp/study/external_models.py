"""What of torchvision's and timm's networks can be cut: the section on external models of docs/networks.md.

`python -m offramp.study.external_models` cuts every network of the list in three places, at equal shares of its
multiply-adds, and compares it with the uncut one (`offramp.split.equivalence`). Each runs in a process of its own;
those that have a record already are left out. `python -m offramp.study.networks > docs/networks.md` writes the table.
"""

import json
import multiprocessing
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.optional import vision
from offramp.split import cut_points, equivalence, exit_placement, model_sources
from offramp.split.supported import check_supported
from offramp.split.to_backbone import assemble

TIMM = """
    test_convnext test_efficientnet test_vit test_nfnet test_mambaout test_byobnet test_resnet starnet_s050
    test_coatnet test_vit_relpos dla46x_c mobilevit_xxs edgenext_xx_small mobilenetv3_small_050
    ese_vovnet19b_slim_dw repghostnet_050 efficientvit_m0 ghostnet_050 regnetx_002 cspnext_tiny iformer_t
    xcit_nano_12_p8_224 cs3darknet_focus_s efficientvit_b0 swiftformer_xs efficientformerv2_s0 pvt_v2_b0
    fasternet_t0 fastvit_t8 lcnetv2_small inception_next_atto rexnet_100 pit_ti_224 hardcorenas_b repvit_m1
    vit_tiny_patch16_dinov3_qkvb coat_tiny convit_tiny deit_tiny_patch16_224 gmlp_ti16_224 hgnetv2_b0 shvit_s1
    vit_tiny_r_s16_p8_224 cpubone_nano efficientvim_m1 crossvit_tiny_240 levit_128s densenet121 halonet_h1
    dpn48b visformer_tiny resnest14d csatv2 resnetv2_18 legacy_seresnet18 poolformerv2_s12 cait_xxs24_224
    skresnet18 gcvit_xxtiny tiny_vit_5m_224 efficientformer_l1 hrnet_w18_small lowformer_b0 jx_nest_tiny
    convmixer_768_32 vitamin_small_224 legacy_xception tnt_s_legacy_patch16_224 adv_inception_v3 rdnet_tiny
    twins_svt_small mvitv2_tiny res2next50 volo_d1_224 sam2_hiera_tiny xception41p sequencer2d_s
    hiera_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256 davit_tiny
    focalnet_tiny_srf selecsls42 tresnet_m nextvit_small inception_v4 ens_adv_inception_resnet_v2
    mobilenetv5_base pnasnet5large samvit_base_patch16_224 naflexvit_base_patch16_parfac_gap
    beit_base_patch16_224 qwen3_vit_88m nasnetalarge vgg11 gemma4_vit_167m deepseek_vit_412m
"""
"""The smallest network of every file of timm's models."""
TIMM_MORE = """
    mobilevitv2_050 lcnet_035 mobilenetv2_035 mnasnet_small tinynet_e semnasnet_050 convnext_zepto_rms
    regnety_002 ghostnetv3_050 convnextv2_atto mobilenet_edgetpu_100 mixnet_s spnasnet_100 efficientnet_lite0
    mobileone_s1 rexnetr_100 resnet10t eva02_tiny_patch14_224 fbnetc_100 vit_tiny_patch16_224 regnetz_005
    mambaout_femto maxvit_pico_rw_256 densenetblur121d gernet_s fbnetv3_b nf_regnet_b0 repvgg_a0 regnetz_b16
    resnext26ts eca_resnext26ts seresnext26ts gcresnext26ts eca_botnext26ts_256 bat_resnext26ts
    coatnet_pico_rw_224 lambda_resnet26t haloregnetz_b resnetblur18 seresnet18 poolformer_s12 botnet26t_256
    gmixer_12_224 efficientnetv2_rw_t gc_efficientnetv2_rw_t sehalonet33ts sebotnet33ts_256 darknet17
    coatnext_nano_rw_224 hgnet_tiny resmlp_12_224 ecaresnext26t_32x4d ecaresnet26t maxxvit_rmlp_nano_rw_256
    seresnext26t_32x4d nest_tiny resnet32ts mixer_s16_224 seresnet33ts gcresnet33ts cspresnext50 regnetv_040
    sedarknet21 cspresnet50 resnetaa34d vit_srelpos_small_patch16_224 flexivit_small lamhalobotnet50ts_256
    vovnet39a eca_vovnet39b halo2botnet50ts_256 xception maxxvitv2_nano_rw_256 inception_v3 eca_nfnet_l0
    resnext50_32x4d caformer_s18 convformer_s18 skresnext50_32x4d cspdarknet53 seresnetaa50d
"""
"""The smallest networks of other families that share a file with those."""
SIDES = (64, 96, 128, 160, 192, 224, 256, 299, 331, 384, 448, 512, 240)
EXITS, GIB, SECONDS = 4, 3.0, 3600
"""Exits, the final one included; largest weights in GiB; largest time for one network."""
RESULTS = Path(__file__).parents[2] / "results" / "external_models.jsonl"


def names() -> list[str]:
    """Every network of the list: torchvision's classifiers, and one or more of every family of timm."""
    models = vision("torchvision.models")
    of_torchvision = [f"torchvision:{name}" for name in models.list_models(module=models)]
    return [
        *(f"timm:{name}" for name in TIMM.split()),
        *of_torchvision,
        *(f"timm:{name}" for name in TIMM_MORE.split()),
    ]


def survey(name: str) -> dict[str, Any]:
    """Cut a network and compare it with the uncut one.

    Returns:
        `result` (equal, refused or too large), the side of the images, and `after` (layers) or `reason`.
    """
    side = smallest_side(name)
    if side is None:
        return {"name": name, "result": "refused", "reason": f"takes no square image of {SIDES} pixels"}
    record: dict[str, Any] = {"name": name, "side": side}
    size = sum(p.numel() for p in _without_values(name, side).parameters()) * 4 / 2**30
    if size > GIB:
        return {**record, "result": "too large", "reason": f"{size:.1f} GiB of weights"}
    torch.manual_seed(0)
    model, shape = _model(name, side), (3, side, side)
    try:
        check_supported(model)
        points = cut_points.find(model, shape)
        names = exit_placement.equal(points, min(EXITS, len(exit_placement.places(points)) + 1))
        backbone = assemble(model, points, names, shape, None)
        equivalence.check(model, backbone, names)
    except ValueError as error:
        return {**record, "result": "refused", "reason": str(error)}
    return {**record, "result": "equal", "after": names}


def smallest_side(name: str) -> int | None:
    """The first of `SIDES` that a network takes."""
    for side in SIDES:
        try:
            cut_points.logits_on_meta(_without_values(name, side), (3, side, side), search=False)
        except ValueError:
            continue
        return side
    return None


def _without_values(name: str, side: int) -> nn.Module:
    """A network on the meta device; with values if its constructor reads some (RegNets of torchvision)."""
    try:
        with torch.device("meta"):
            return _model(name, side)
    except ValueError:
        return _model(name, side)


def _model(name: str, side: int) -> nn.Module:
    model = model_sources.construct(name, classes=10, size=(side, side))
    assert isinstance(model, nn.Module)
    return model


def section(results: Path = RESULTS) -> Iterator[str]:
    """The lines of the section on external models, from the results of a survey."""
    records = read(results)
    equal = [record for record in records.values() if record["result"] == "equal"]
    yield from SECTION.format(networks=len(records), equal=len(equal), rest=len(records) - len(equal)).splitlines()
    for name, record in records.items():
        after = ", ".join(f"`{layer}`" for layer in record.get("after", ()))
        reason = re.sub(r"\s+", " ", record.get("reason", "")).replace("|", "\\|")
        yield f"| `{name}` | {record.get('side', '')} | {record['result']} | {after or reason} |"


SECTION = """
## External models

Networks of torchvision and timm with three early exits, attached by `--net NAME --exits 4` after equal shares of the
multiply-adds. Each was tried with square images of the smallest usual side (64 pixels or more) that it accepts.
**equal**: the network divided into stages and the original network compute the same logits in evaluation and training,
the same gradients and the same buffers, for batches of 1 and 3. {equal} of {networks} networks are equal; the others
({rest}) are refused, for the reason in the table. `python -m offramp.study.external_models` tries the networks that
have no record in `results/external_models.jsonl`.

| network | side, pixels | result | exits after these layers, or reason |
|---|---:|---|---|"""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Records by name, in the order of the list."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = {record["name"]: record for record in map(json.loads, lines)}
    return {name: records[name] for name in names() if name in records}


def _append(name: str, path: Path) -> None:
    torch.set_num_threads(1)
    record = survey(name)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def main() -> None:
    """Survey the networks that are named on the command line, or every one of the list without a record."""
    named, context = sys.argv[1:], multiprocessing.get_context("fork")
    known = {} if named else read(RESULTS)
    for name in named or names():
        if name in known:
            continue
        process = context.Process(target=_append, args=(name, RESULTS))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
        if process.exitcode != 0:
            print(f"{name}: no record", flush=True)


if __name__ == "__main__":
    main()
