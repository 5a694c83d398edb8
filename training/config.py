"""Settings of a training run as one frozen dataclass, from a TOML file and from flags.

    make_config({"legendre_polys": 10}, file="run.toml", flags={"learning_rate": 1e-3})

Settings of the published configuration have its names and, where the model depends on them, its defaults. In
a file they stand at the top level or, as in the published YAML, in tables [model], [data] and [trainer].
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from satclip_engine import backends
from satclip_engine.errors import Argument, SatclipError, UsageError
from satclip_engine.options import PRECISIONS
from satclip_engine.weights.schema import MAX_DEGREES

# Names of the released image encoders in the published layout.
VISION_LAYERS: Final[Mapping[str, str]] = {
    "resnet18": "moco_resnet18",
    "resnet50": "moco_resnet50",
    "vit16": "moco_vit16",
}
IMAGE_ENCODERS: Final = ("rcf", *VISION_LAYERS)
IMAGE_PRECISIONS: Final = ("float32", "tf32", "bf16")
_PUBLISHED_TABLES: Final = ("model", "data", "trainer")


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str | None = "",
    resumable: bool = False,
    size: int | None = None,
    otherwise: Any = None,
) -> Any:
    """Define a field of TrainConfig.

    flag: the option's name where it is not the setting's own; None for settings of files only.
    resumable: a resumed run may have another value.
    size: of a list.
    otherwise: value of a setting that nobody gave, where the data take it.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata = {"help": text, "limits": limits, "choices": choices, "flag": flag}
    more = {"resumable": resumable, "size": size, "otherwise": otherwise}
    return field(default=default, metadata={**metadata, **more})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Raises UsageError naming the setting for a value that cannot be used."""

    # The location encoder
    legendre_polys: int = setting(40, "L: harmonics of degree 0 to L-1.", least=1, most=MAX_DEGREES)
    capacity: int = setting(512, "Width of the hidden layers.", least=1)
    num_hidden_layers: int = setting(2, "Number of hidden layers.", least=1)
    embed_dim: int = setting(256, "Dimensions of the embedding.", least=1)
    dropout: float = setting(0.5, "Share of hidden pre-activations dropped in training.", least=0, below=1)
    first_layer_taper: float = setting(
        0.0, "T: initial weights of degree l are multiplied by (1+l/K)^-T.", least=0
    )
    first_layer_knee: float = setting(1.0, "K: the degree from which that falls steeply.", above=0)
    first_layer_gain: float = setting(1.0, "Factor of the first layer's initial weights.", above=0)
    max_gain: float | None = setting(
        None, "Limit of the norm of each unit's first weights, in multiples of the published start.", above=0
    )
    harmonics_calculation: str | None = setting(
        None,
        "Convention of the checkpoints.  [default: analytic up to L = 20, closed-form above]",
        choices=("analytic", "closed-form"),
        flag="convention",
    )

    # Images
    image_encoder: str = setting(
        "rcf", "Image encoder: it turns images into features.", choices=IMAGE_ENCODERS
    )
    image_weights: str | None = setting(None, "File with the image encoder's weights.")
    unfreeze: bool = setting(
        False, "Train the image encoder too, on fresh views; normalisation statistics stand still."
    )
    trunk_batch: int = setting(
        64, "Images in the unfrozen encoder at once: a matter of memory only.", least=1, resumable=True
    )
    views: int | None = setting(
        None, "Augmented views of each image in the feature cache.", least=1, otherwise=4
    )
    flips: bool | None = setting(None, "Mirror views at random.", otherwise=True)
    blur: bool | None = setting(None, "Blur views at random, by 3 by 3 pixels.", otherwise=True)
    rcf_filters: int | None = setting(None, "Filters of rcf.", least=1, otherwise=256)
    rcf_components: int | None = setting(
        None,
        "Principal components of rcf's features that are kept, half-whitened.  [default: all features]",
        least=1,
    )
    in_channels: int | None = setting(
        None, "Channels that images must have.  [default: what they have]", least=1
    )
    patch: int | None = setting(None, "Side of patches cut from a raster, in pixels.", least=1, otherwise=16)
    count: int | None = setting(None, "Number of patches cut from a raster.", least=1, otherwise=100_000)
    water_kept: float | None = setting(
        None,
        "Share of a raster's patches of plain water (flat and dark) that is kept.",
        least=0,
        most=1,
        otherwise=1.0,
    )
    bounds: tuple[float, ...] | None = setting(
        None, "W S E N in degrees, for a raster without georeference.", size=4
    )
    bands: tuple[int, ...] | None = setting(None, "Bands to read, such as 1,2,3.  [default: all]")
    divisor: float | None = setting(
        None,
        "Divisor of stored pixel values.  [default: their scale and offset, or 10000 for 16 bits, 255 for 8]",
        above=0,
    )
    max_skipped: int | None = setting(
        None, "Images that may be unusable.  [default: 1 %, at least 10]", least=0
    )
    feature_noise: float = setting(
        0.0, "Standard deviation of noise on image features, in units of their own.", least=0
    )

    # The objective
    logit_scale: float = setting(1 / 0.07, "Scale of the similarities at the start.", above=0)
    learn_logit_scale: bool = setting(True, "Train the scale of the similarities.")
    max_logit_scale: float = setting(100.0, "Limit of that scale.", above=0)
    coordinate_jitter: float = setting(
        0.01, "Locations are moved by up to this many degrees north and east.", least=0, below=90
    )

    # Batches and updates
    batch_size: int = setting(8192, "Samples a step, each the others' negative.", least=1)
    max_epochs: int = setting(500, "Passes over the data.", least=1, flag="epochs", resumable=True)
    max_steps: int | None = setting(None, "Stop after this many steps.", least=1, resumable=True)
    learning_rate: float = setting(1e-4, "Learning rate of AdamW.", above=0)
    first_layer_lr: float | None = setting(
        None, "Learning rate of the first layer.  [default: the others']", least=0
    )
    first_layer_bias_lr: float | None = setting(
        None, "Learning rate of the first layer's biases.  [default: the first layer's]", least=0
    )
    image_lr: float | None = setting(
        None, "Learning rate of the unfrozen image encoder.  [default: the others']", least=0
    )
    weight_decay: float = setting(0.01, "Weight decay; none on biases, 1-d tensors and logit_scale.", least=0)
    schedule: str = setting("constant", "Learning rate over the run.", choices=("constant", "cosine"))
    warmup_steps: int = setting(0, "Steps over which the learning rate rises from 0.", least=0)
    ema: float | None = setting(
        None,
        "Decay of an average of the weights, which is validated and written; short runs rise to less.",
        above=0,
        below=1,
    )

    # Validation
    val_random_split_fraction: float = setting(
        0.1, "Share of samples held out, by whole locations; 0 for none.", least=0, below=1
    )
    val_block_degrees: float | None = setting(
        None, "Hold out whole blocks of this many degrees instead of single samples.", above=0, most=90
    )
    check_val_every_n_epoch: int = setting(1, "Epochs from one validation to the next.", least=1)
    patience: int | None = setting(
        None, "Stop after this many validations without a lower loss.", least=1, resumable=True
    )

    # The run
    seed: int = setting(
        0, "Seed of all random numbers: weights, split, order, views, noise.", least=0, most=2**32 - 1
    )
    precision: str = setting("float32", "Arithmetic of the image side's products.", choices=IMAGE_PRECISIONS)
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one.", resumable=True)
    backend: str = setting(
        "auto",
        "Backend of the location encoder and the loss; auto: the fastest on the device.",
        choices=backends.TRAINING_NAMES,
        resumable=True,
    )
    location_precision: str = setting(
        "exact",
        "Arithmetic of the location encoder on a GPU; fast: 16-bit products after its first layer.",
        choices=PRECISIONS,
    )
    threads: int | None = setting(None, "Threads.  [default: all cores]", least=1, resumable=True)
    num_workers: int | None = setting(
        None, "Readers of images.  [default: one a core, at most 4]", least=0, resumable=True
    )
    checkpoint_minutes: float = setting(
        10.0, "Minutes from one checkpoint to the next.", least=0, resumable=True
    )
    tensorboard: bool = setting(False, "Log for TensorBoard too, in DIR/tensorboard.", resumable=True)

    # Published settings that decide nothing here; they are written into the checkpoints.
    le_type: str = setting("sphericalharmonics", "", choices=("sphericalharmonics",), flag=None)
    pe_type: str = setting("siren", "", choices=("siren",), flag=None)
    vision_layers: str | None = setting(
        None, "Another name for image_encoder.", choices=tuple(VISION_LAYERS.values()), flag=None
    )
    image_resolution: int = setting(256, "", least=1, flag=None)
    vision_width: int = setting(768, "", least=1, flag=None)
    vision_patch_size: int = setting(32, "", least=1, flag=None)
    frequency_num: int = setting(16, "", flag=None)
    max_radius: float = setting(260, "", flag=None)
    min_radius: float = setting(1, "", flag=None)
    sh_embedding_dims: int = setting(32, "", flag=None)

    def __post_init__(self) -> None:
        for name in settings():
            object.__setattr__(self, name, check_setting(name, getattr(self, name)))
        if self.logit_scale > self.max_logit_scale:
            raise UsageError(
                f"logit_scale: {self.logit_scale:g} is above max_logit_scale, {self.max_logit_scale:g}: "
                "lower it or raise ",
                Argument("max_logit_scale"),
                argument="logit_scale",
            )
        if self.vision_layers not in (None, VISION_LAYERS.get(self.image_encoder)):
            raise UsageError(
                f"vision_layers: {self.vision_layers} is not image_encoder {self.image_encoder}: "
                "leave it out",
                argument="vision_layers",
            )
        if self.unfreeze and self.image_encoder not in VISION_LAYERS:
            raise UsageError(
                f"unfreeze: {self.image_encoder} has nothing to fine-tune: choose another ",
                Argument("image_encoder"),
                f" ({', '.join(VISION_LAYERS)}), or leave it out",
                argument="unfreeze",
            )
        if self.image_lr is not None and not self.unfreeze:
            raise UsageError(
                "image_lr: the image encoder is frozen: give ",
                Argument("unfreeze"),
                " too, or leave it out",
                argument="image_lr",
            )

    def with_defaults(self, names: Iterable[str]) -> TrainConfig:
        """The same with a value for those of the settings that nobody gave and that have one otherwise."""
        values = {name: settings()[name].metadata["otherwise"] for name in names if name in settings()}
        return dataclasses.replace(self, **{n: v for n, v in values.items() if getattr(self, n) is None})

    def as_dict(self) -> dict[str, Any]:
        """Settings that have a value, in plain types."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def as_toml(self) -> str:
        """Settings as TOML that make_config reads back to the same value."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.as_dict().items())


def settings() -> Mapping[str, dataclasses.Field[Any]]:
    """Fields of TrainConfig by name."""
    return {entry.name: entry for entry in dataclasses.fields(TrainConfig)}


def flag_of(name: str) -> str | None:
    """Option of a setting, such as --epochs; None where there is none."""
    flag = settings()[name].metadata["flag"]
    return None if flag is None else "--" + (flag or name).replace("_", "-")


@dataclass(frozen=True)
class SettingType:
    """Type of a setting: `scalar`, or a list of these; `optional` when it may have no value."""

    scalar: type
    is_list: bool
    optional: bool


@cache
def setting_type(name: str) -> SettingType:
    """Type of a setting."""
    hint = get_type_hints(TrainConfig)[name]
    members = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    value_type = next(member for member in members if member is not NoneType)
    is_list = get_origin(value_type) is tuple
    return SettingType(get_args(value_type)[0] if is_list else value_type, is_list, NoneType in members)


def read_toml(path: Path) -> dict[str, Any]:
    """Read the settings in a file, those of the published tables too.

    Raises UsageError naming file and key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and nesting, too
        raise UsageError(f"{path}: not TOML ({error})") from error
    settings_read: dict[str, Any] = {}
    for name, value in content.items():
        nested = value if name in _PUBLISHED_TABLES and isinstance(value, dict) else {name: value}
        for key, inner in nested.items():
            if key in settings_read:
                raise UsageError(f"{path}: {key}: given twice: leave one out")
            settings_read[key] = inner
    return settings_read


def make_config(
    values: Mapping[str, Any] | None = None,
    *,
    file: str = "",
    flags: Mapping[str, Any] | None = None,
    base: TrainConfig | None = None,
) -> TrainConfig:
    """Make a config from `base` (the defaults), the `values` of `file`, and the flags that are not None.

    Raises UsageError naming the file and the key, or the flag.
    """
    values = values or {}
    for name in values:
        if name not in settings():
            raise UsageError(f"{file or 'settings'}: {name}: no such setting{_nearest(name)}")
    try:
        checked = {name: check_setting(name, value) for name, value in values.items()}
    except UsageError as error:
        raise respelled(error, file, values, None) from error
    try:
        typed = {name: value for name, value in (flags or {}).items() if value is not None}
        checked |= {name: check_setting(name, value) for name, value in typed.items()}
        if "vision_layers" in checked and "image_encoder" not in checked:
            released = {layers: name for name, layers in VISION_LAYERS.items()}
            checked["image_encoder"] = released[checked["vision_layers"]]
        return dataclasses.replace(base or TrainConfig(), **checked)
    except UsageError as error:
        raise respelled(error, file, values, flags) from error


def spelling(name: str, file: str, values: Mapping[str, Any], flags: Mapping[str, Any] | None) -> str:
    """Name of a setting as it was given: its key in `file`, else its flag, or its own name without flags."""
    if file and name in values and (flags or {}).get(name) is None:
        return f"{file}: {name}"
    return name if flags is None else flag_of(name) or name


def respelled(
    error: SatclipError, file: str, values: Mapping[str, Any], flags: Mapping[str, Any] | None
) -> SatclipError:
    """An error about a setting with the setting's name as it was given; other errors as they are."""
    name = error.argument
    if name is None or name not in settings():
        return error
    if any(isinstance(piece, Argument) and piece.name == name for piece in error.message):
        return error  # advice to give another value; a flag overrides a file
    spelled = spelling(name, file, values, flags)
    message, *more = error.message
    text = str(message).removeprefix(f"{name}: ")
    if text.startswith(f"{name} "):
        return type(error)(f"{spelled}{text.removeprefix(name)}", *more)
    return type(error)(f"{spelled}: {text}", *more)


def check_setting(name: str, value: Any) -> Any:
    """Convert a value to the type of the setting. Raises UsageError that begins with its name."""
    value_type, rules = setting_type(name), settings()[name].metadata
    if value is None and value_type.optional:
        return None
    if value_type.is_list:
        if not isinstance(value, list | tuple) or len(value) != (rules["size"] or max(1, len(value))):
            raise _unusable(name, f"a list of {rules['size'] or 'one or more'}", repr(value))
        items = tuple(_typed(name, item, value_type.scalar) for item in value)
        for item in items:
            _check_limits(name, item, rules["limits"])
        return items
    value = _typed(name, value, value_type.scalar)
    if rules["choices"] and value not in rules["choices"]:
        raise _unusable(name, f"one of {', '.join(rules['choices'])}", repr(value))
    if value_type.scalar in (int, float):
        _check_limits(name, value, rules["limits"])
    return value


def _typed(name: str, value: Any, scalar: type) -> Any:
    if scalar is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not scalar:
        raise _unusable(name, _type_name(scalar), repr(value))
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _unusable(name, "text that is UTF-8", ascii(value)) from error
    return value


def _check_limits(name: str, value: float, limits: Mapping[str, float | None]) -> None:
    tests = {
        "least": (lambda limit: value >= limit, "at least"),
        "above": (lambda limit: value > limit, "above"),
        "most": (lambda limit: value <= limit, "at most"),
        "below": (lambda limit: value < limit, "below"),
    }
    if not math.isfinite(value):
        raise _unusable(name, "a finite number", str(value))
    active = {rule: limit for rule, limit in limits.items() if limit is not None}
    if not all(tests[rule][0](limit) for rule, limit in active.items()):
        expected = " and ".join(f"{tests[rule][1]} {limit:.10g}" for rule, limit in active.items())
        raise _unusable(name, f"a number {expected}", str(value))


def _unusable(name: str, expected: str, value: str) -> UsageError:
    return UsageError(f"{name}: expected {expected}, got {value}", argument=name)


def changed_settings(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Settings that differ and that a resumed run may not change."""
    return [
        name
        for name, entry in settings().items()
        if not entry.metadata["resumable"] and getattr(before, name) != getattr(now, name)
    ]


def other_settings(folder: Path, before: TrainConfig, now: TrainConfig, spelled: Mapping[str, str]) -> str:
    """Message that a run in `folder` has other settings; spelled: the changed settings as they were given."""
    differences = ", ".join(
        f"{label} ({getattr(before, name)} there, {getattr(now, name)} now)"
        for name, label in spelled.items()
    )
    return (
        f"{folder} holds a run with other settings: {differences}; give the same, or start over with "
        "--overwrite"
    )


def _nearest(name: str) -> str:
    import difflib

    options = {str(flag_of(setting))[2:].replace("-", "_"): setting for setting in settings()}
    if name.replace("-", "_") in options:
        return f"; did you mean {options[name.replace('-', '_')]}?"
    close = difflib.get_close_matches(name, settings(), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _type_name(scalar: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(scalar, "text")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(_toml_character(character) for character in value) + '"'
    return repr(list(value) if isinstance(value, tuple) else value)


def _toml_character(character: str) -> str:
    """A character as TOML's basic strings have it; those that control terminals are escaped."""
    if character in '\\"':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
