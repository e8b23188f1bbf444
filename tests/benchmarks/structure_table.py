"""What is found, refused and cut in the nets of several libraries, and how long that takes.

`python tests/benchmarks/structure_table.py [--json FILE] [PART OF A NAME ...]`: a line a net, and a
JSON file with all of it; nets that FILE holds are not run again. Libraries that are not installed
are left out. Weights are random, inputs small. Each net is cut twice, without random channels whose
writers, and whose readers, are zero; the difference of the outputs is relative to the largest.
Seconds are of one thread of the CPU, to find channels.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regkit.pruning.counts import num_parameters
from regkit.pruning.remove import remove
from regkit.structure.channels import Coupling
from regkit.structure.coupling import couple
from regkit.structure.replica import fixed_seed, outputs
from regkit.timing import cpu_name

sys.path.insert(0, str(Path(__file__).parents[1] / "structure"))
from own_nets import OWN, example_of  # pyright: ignore[reportMissingImports]

Make = Callable[[], tuple[nn.Module, Any]]


@dataclass
class Row:
    """One net.

    found, groups: sets that can be removed, and channels (or heads, units) in them.
    removable: share of the parameters that goes with all channels but one of each set.
    refused: how often each reason was given.
    difference: of outputs, relative, the largest of both cuts.
    unchanged: whether weights and input stayed as they were.
    """

    net: str
    seconds: float = 0.0
    found: int = 0
    heads: int = 0
    groups: int = 0
    removable: float = 0.0
    difference: float = 0.0
    unchanged: bool = True
    refused: dict[str, int] | None = None
    error: str = ""

    def __str__(self) -> str:
        why = "; ".join(f"{n} {text}" for text, n in (self.refused or {}).items())
        return (
            f"{self.net:<34} {self.found:4} sets {self.heads:3} of heads {self.groups:6} groups "
            f"{self.removable:6.1%} diff {self.difference:.0e} {self.seconds:6.1f} s "
            f"{'' if self.unchanged else 'CHANGED '}{self.error or why}"
        )


def measured(name: str, make: Make) -> Row:
    """Find the channels of a net, cut some, and compare."""
    row = Row(name)
    torch.manual_seed(0)
    try:
        model, example = make()
        model.eval()
        enliven(model)
        state, given = deepcopy(model.state_dict()), deepcopy(example)
        begun = time.process_time()
        coupling = couple(model, example)
        row.seconds = round(time.process_time() - begun, 2)
        row.found, row.heads = len(coupling.channels), sum(c.head for c in coupling.channels)
        row.groups = sum(c.num_groups for c in coupling.channels)
        row.refused = dict(Counter(reason(note) for note in coupling.notes).most_common())
        row.removable = share_removable(model, coupling)
        pairs = [cut(model, coupling, example, kind) for kind in ("channel", "channel_inputs")]
        row.difference = max(pairs)
        model.load_state_dict(state)
        row.unchanged = same(state, model.state_dict()) and same(given, example)
    except Exception as error:
        row.error = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    return row


def cut(model: nn.Module, coupling: Coupling, example: Any, kind: str) -> float:
    """Zero random channels and remove them; return how far the outputs are apart."""
    state, dead = deepcopy(model.state_dict()), {}
    even: dict[str, Tensor] = {}
    for group_set in coupling.group_sets(kind):
        (one,) = (c for c in coupling.channels if c.name == group_set.name)
        mask = torch.rand(group_set.num_groups) < 0.4
        if one.together is not None:
            mask = even.setdefault(one.together, mask)
        mask[0], mask[-1] = True, False
        dead[group_set.name] = mask
        group_set.write(group_set.rows().masked_fill(mask[:, None], 0))
    with torch.no_grad(), fixed_seed(model):
        whole = outputs(model, example)
    small = remove(model, coupling, dead)
    with torch.no_grad(), fixed_seed(model):
        left = outputs(small, example)
    model.load_state_dict(state)
    found = [
        float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-30))
        for a, b in zip(whole, left, strict=True)
        if a.is_floating_point() and a.numel()
    ]
    return max(found)


def share_removable(model: nn.Module, coupling: Coupling) -> float:
    """Return the share of parameters that goes with all channels but one of each set."""
    every = {c.name: torch.arange(c.num_groups) > 0 for c in coupling.channels}
    return 1 - num_parameters(remove(model, coupling, every)) / num_parameters(model)


def enliven(model: nn.Module) -> None:
    """Give norms numbers of their own, so that a lost one shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            with torch.no_grad():
                parameter.add_(torch.rand_like(parameter) * 0.2)


def same(a: Any, b: Any) -> bool:
    """Say whether tensors in nested containers are equal."""
    first, second = tree_leaves(a), tree_leaves(b)
    return len(first) == len(second) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(first, second, strict=True)
    )


def reason(note: str) -> str:
    """Return why something was left out, without names and numbers."""
    why = note.partition(": ")[2]
    first, _, rest = why.partition(" ")
    why = rest if "." in first else why  # of the layer's own name
    for words in ("passes a LayerNorm", "passes a GroupNorm"):
        why = why.replace(words, "passes x, " + words.removeprefix("passes "))
    if why.startswith("passes ") and ", a" in why:
        why = "passes " + why.partition(", ")[2]
    return why.partition(":")[0].partition(" (")[0].partition(" in ")[0][:60]


def image(side: int = 64) -> Tensor:
    return torch.randn(1, 3, side, side)


def clip(frames: int = 4, side: int = 32) -> Tensor:
    return torch.randn(1, 3, frames, side, side)


def torchvision_nets() -> Iterator[tuple[str, Make]]:
    from torchvision import models

    plain = (
        "alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet"
    )
    plain += " squeezenet1_1 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x1_0 mnasnet0_5"
    plain += " efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_400mf convnext_tiny"
    for name in plain.split():
        options = {"init_weights": False} if name == "googlenet" else {}
        yield name, lambda n=name, o=options: (getattr(models, n)(num_classes=10, **o), image())
    yield "inception_v3", lambda: (models.inception_v3(init_weights=False), image(96))
    yield "vit_b_32", lambda: (models.vit_b_32(image_size=64), image())
    yield "swin_t", lambda: (models.swin_t(), image())
    yield "swin_v2_t", lambda: (models.swin_v2_t(), image())
    yield "maxvit_t", lambda: (models.maxvit_t(input_size=(224, 224)), image(224))
    for name in ["r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"]:
        yield name, lambda n=name: (getattr(models.video, n)(), clip())
    yield "s3d", lambda: (models.video.s3d(), clip(16, 224))
    seg = models.segmentation
    bare = {"weights": None, "weights_backbone": None, "num_classes": 5}
    yield "deeplabv3_resnet50", lambda: (seg.deeplabv3_resnet50(**bare, aux_loss=True), image())
    yield "lraspp_mobilenet", lambda: (seg.lraspp_mobilenet_v3_large(**bare), image())
    yield "raft_small", lambda: (models.optical_flow.raft_small(), [image(128), image(128)])


def timm_nets() -> Iterator[tuple[str, Make]]:
    import timm  # pyright: ignore[reportMissingImports]

    names = (
        "resnet26d res2net50_26w_4s resnest14d seresnet18 skresnet18 ecaresnet26t hrnet_w18_small"
    )
    names += " dpn48b dla34 vovnet39a ghostnet_100 tf_efficientnet_b0 mobilenetv4_conv_small"
    names += " regnety_002 convnextv2_atto repvgg_a0 cspresnet50 nfnet_f0 xception41 inception_v4"
    names += (
        " rexnet_100 mixnet_s hardcorenas_a lcnet_050 fbnetc_100 poolformer_s12 edgenext_xx_small"
    )
    for name in names.split():
        side = 96 if name == "inception_v4" else 64
        yield name, lambda n=name, s=side: (timm.create_model(n, num_classes=10), image(s))
    sized = (
        "vit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224"
    )
    sized += " mixer_s32_224 gmixer_24_224 cait_xxs24_224 levit_128s coat_lite_tiny pit_ti_224"
    sized += " swinv2_cr_tiny_224 xcit_nano_12_p16_224 mvitv2_tiny maxvit_rmlp_pico_rw_256"
    for name in sized.split():
        side = 256 if name.endswith("256") else 224
        yield name, lambda n=name, s=side: (timm.create_model(n, num_classes=10), image(s))


def transformers_nets() -> Iterator[tuple[str, Make]]:
    import transformers as hf  # pyright: ignore[reportMissingImports]

    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 96, "image_size": 32}

    def made(kind: str, config: Any, pixels: Tensor, **options: Any) -> tuple[nn.Module, Any]:
        settings = getattr(hf, config)(**options)
        return getattr(hf, kind)(settings), {"pixel_values": pixels}

    video = torch.randn(1, 4, 3, 32, 32)
    for eager in (False, True):
        mark = " eager" if eager else ""
        extra = {"attn_implementation": "eager"} if eager else {}
        yield (
            f"VideoMAE{mark}",
            partial(
                made, "VideoMAEForVideoClassification", "VideoMAEConfig", video,
                **small, **extra, patch_size=8, num_frames=4,
            ),
        )  # fmt: skip
        yield (
            f"ViViT{mark}",
            partial(
                made, "VivitForVideoClassification", "VivitConfig", video,
                **small, **extra, tubelet_size=[2, 8, 8], num_frames=4,
            ),
        )  # fmt: skip
        yield (
            f"ViT{mark}",
            partial(
                made, "ViTForImageClassification", "ViTConfig", image(32),
                **small, **extra, patch_size=8,
            ),
        )  # fmt: skip
    for attention in ("divided_space_time", "space_only", "joint_space_time"):
        yield (
            f"TimeSformer {attention}",
            partial(
                made, "TimesformerForVideoClassification", "TimesformerConfig", video,
                **small, patch_size=8, num_frames=4, attention_type=attention,
            ),
        )  # fmt: skip
    yield (
        "DINOv2",
        partial(
            made, "Dinov2ForImageClassification", "Dinov2Config", image(32),
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        ),
    )  # fmt: skip
    yield (
        "V-JEPA 2",
        lambda: (
            hf.VJEPA2Model(
                hf.VJEPA2Config(
                    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, crop_size=32,
                    patch_size=8, frames_per_clip=4, pred_hidden_size=24, pred_num_hidden_layers=1,
                    pred_num_attention_heads=2,
                )
            ),
            {"pixel_values_videos": video, "skip_predictor": True},
        ),
    )  # fmt: skip
    yield "HF ResNet", partial(made, "ResNetForImageClassification", "ResNetConfig", image())
    yield (
        "HF ConvNeXt",
        partial(
            made, "ConvNextForImageClassification", "ConvNextConfig", image(),
            hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1],
        ),
    )  # fmt: skip
    yield (
        "SegFormer",
        partial(
            made, "SegformerForSemanticSegmentation", "SegformerConfig", image(),
            hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=32,
        ),
    )  # fmt: skip
    yield (
        "Swin HF",
        partial(
            made, "SwinForImageClassification", "SwinConfig", image(64),
            image_size=64, embed_dim=24, depths=[1, 1], num_heads=[2, 4], window_size=4,
        ),
    )  # fmt: skip
    text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    yield (
        "Llama (grouped queries)",
        lambda: (
            hf.LlamaForCausalLM(hf.LlamaConfig(**text)),
            {"input_ids": torch.arange(7)[None], "use_cache": False},
        ),
    )


def pytorchvideo_nets() -> Iterator[tuple[str, Make]]:
    from pytorchvideo.models import hub  # pyright: ignore[reportMissingImports]

    for name in ["slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "x3d_xs", "x3d_s"]:
        frames, side = (4, 182) if name.startswith("x3d") else (8, 224)
        frames = {"x3d_s": 13, "csn_r101": 32, "r2plus1d_r50": 16}.get(name, frames)
        made = {"pretrained": False, "progress": False}
        yield name, lambda n=name, f=frames, s=side, o=made: (getattr(hub, n)(**o), clip(f, s))
    yield (
        "slowfast_r50",
        lambda: (hub.slowfast_r50(pretrained=False), [[clip(8, 224), clip(32, 224)]]),
    )
    yield "efficient_x3d_xs", lambda: (hub.efficient_x3d_xs(pretrained=False), clip(4, 160))


def monai_nets() -> Iterator[tuple[str, Make]]:
    from monai.networks import nets  # pyright: ignore[reportMissingImports]

    volume = torch.randn(1, 1, 32, 32, 32)
    shape = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    widths = {"channels": (8, 16, 32), "strides": (2, 2)}
    yield "monai UNet", lambda: (nets.UNet(**shape, **widths, norm="batch"), volume)
    yield "monai UNet res", lambda: (nets.UNet(**shape, **widths, num_res_units=2), volume)
    yield "monai SegResNet", lambda: (nets.SegResNet(3, 8, 1, 2), volume)
    yield (
        "monai DynUNet",
        lambda: (
            nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], norm_name="batch"),
            volume,
        ),
    )
    yield "monai AttentionUnet", lambda: (nets.AttentionUnet(**shape, **widths), volume)


def segmentation_nets() -> Iterator[tuple[str, Make]]:
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

    for name in [
        "Unet",
        "UnetPlusPlus",
        "FPN",
        "PSPNet",
        "DeepLabV3Plus",
        "PAN",
        "Linknet",
        "MAnet",
    ]:
        bare = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
        yield f"smp {name}", lambda n=name, o=bare: (getattr(smp, n)(**o), image(128))


def own() -> Iterator[tuple[str, Make]]:
    for name, make in OWN.items():
        yield f"own {name}", lambda n=name, m=make: (m(), example_of(n))


LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Make]]]] = {
    "torch": own,
    "torchvision": torchvision_nets,
    "timm": timm_nets,
    "transformers": transformers_nets,
    "pytorchvideo": pytorchvideo_nets,
    "monai": monai_nets,
    "segmentation_models_pytorch": segmentation_nets,
}


def main() -> None:
    """Print a line a net that the file lacks, then how many of all, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    nets: dict[str, dict[str, Any]] = {}
    if asked.json is not None and asked.json.exists():
        nets = json.loads(asked.json.read_text())["nets"]
    for library, makes in LIBRARIES.items():
        if find_spec(library) is None:
            print(f"{library} is not installed")
            continue
        rows = nets.setdefault(library, {})
        left = [(n, m) for n, m in makes() if n not in rows]
        if asked.names:
            left = [(n, m) for n, m in left if any(p in f"{library}: {n}" for p in asked.names)]
        for place, (name, make) in enumerate(left, 1):
            row = measured(name, make)
            print(f"{library} {place}/{len(left)} {row}", flush=True)
            rows[name] = {key: value for key, value in asdict(row).items() if key != "net"}
            if asked.json:
                text = json.dumps({**machine(), "nets": nets}, indent=1)
                asked.json.write_text(text + "\n")
    every = [Row(name, **row) for rows in nets.values() for name, row in rows.items()]
    wrong = [row.net for row in every if row.error or row.difference > 1e-4 or not row.unchanged]
    print(
        f"{len(every)} nets of {len(nets)} libraries, {sum(r.found for r in every)} sets, longest "
        f"{max((r.seconds for r in every), default=0)} s; wrong or failed: {wrong or 'none'}"
    )


def machine() -> dict[str, Any]:
    """Return what the figures were made with, and when."""
    packages = ["torch", *(name for name in LIBRARIES if name != "torch")]
    return {
        "cpu": cpu_name(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages if find_spec(name) is not None},
    }


if __name__ == "__main__":
    main()
