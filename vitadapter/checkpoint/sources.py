"""Where checkpoints come from: local files, URLs, our model zoo, the Hugging Face hub and timm."""

from pathlib import Path

from detectron2.utils.file_io import PathManager
from timm.models import get_pretrained_cfg, is_model

from vitadapter.checkpoint.cache import fetch_url
from vitadapter.model_zoo.trained_models import SCHEME, find_trained_model

__all__ = ["check_source", "fetch", "is_remote"]

_HUB = "hf://"
_TIMM = "timm://"
_TIMM_FILE = "model.safetensors"
_DETECTRON2 = "detectron2://"
_DETECTRON2_FILES = "https://dl.fbaipublicfiles.com/detectron2/"


def is_remote(source: str) -> bool:
    """Whether `source` names something that is not on this machine's disk."""
    return "://" in source


def check_source(source: str) -> None:
    """Refuses, before anything is downloaded, a name that the model zoo has no weights of.

    Args:
        source: as of `fetch`; those that are not of the model zoo are not checked.

    Raises:
        ValueError: names the experiments that are like it.
    """
    if source.startswith(SCHEME):
        find_trained_model(source.removeprefix(SCHEME))


def fetch(source: str) -> Path:
    """The file of a checkpoint, downloaded once if it is remote.

    Args:
        source: one of

            - a local path;
            - `zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x`: the published weights of an
              experiment;
            - `https://host/file`, `http://host/file`, or `detectron2://file` for those of
              Detectron2's model zoo;
            - `hf://org/repo/path/to/file`, with `@revision` after `repo` for another than
              the newest;
            - `timm://name` for the weights of a timm model, with or without the tag
              (`timm://vit_small_patch14_dinov2.lvd142m`);
            - another URL that is registered with Detectron2's `PathManager`.

            The first two kinds of downloads are kept in `VITADAPTER_CACHE` (see
            `vitadapter.checkpoint.cache.cache_folder`), the others in the caches of the
            Hugging Face hub (`HF_HOME`) and of Detectron2 (`FVCORE_CACHE`).

    Returns:
        The path of the file on this machine.

    Raises:
        ValueError: there is no such file, it cannot be downloaded, or huggingface_hub is missing.
    """
    if source.startswith(SCHEME):
        model = find_trained_model(source.removeprefix(SCHEME))
        return fetch_url(model.url, model.size, model.sha256)
    if source.startswith(_DETECTRON2):
        source = _DETECTRON2_FILES + source.removeprefix(_DETECTRON2)
    if source.startswith(("http://", "https://")):
        return fetch_url(source)
    if source.startswith(_HUB):
        return _fetch_from_hub(source, *_parse_hub(source))
    if source.startswith(_TIMM):
        return _fetch_from_timm(source)
    if not is_remote(source):
        return Path(source)
    try:
        path = Path(PathManager.get_local_path(source))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source} cannot be downloaded: {error}") from error
    if not path.is_file():  # a scheme that nobody has registered is taken for a folder
        raise ValueError(f"{source} cannot be downloaded: nothing is registered for such URLs")
    return path


def _parse_hub(source: str) -> tuple[str, str, str | None]:
    """(repository, file in it, revision) of `hf://org/repo@revision/file`."""
    parts = source.removeprefix(_HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"weights on the hub are written hf://org/repo/file, got {source}")
    name, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{name}", parts[2], revision or None


def _fetch_from_hub(source: str, repository: str, file: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ValueError(
            f"{source} needs huggingface_hub, which is not installed: pip install huggingface_hub, "
            "or download the file and give its path"
        ) from error
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be downloaded ({' '.join(str(error).split())[:300]}). Is this "
            "machine online, and are you allowed to read it (huggingface-cli login)? If not, "
            "download the file elsewhere and give its path"
        ) from error


def _fetch_from_timm(source: str) -> Path:
    name = source.removeprefix(_TIMM)
    if not is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}, got {source}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"{source}: {error}") from error
    if cfg is None or not cfg.hf_hub_id:
        raise ValueError(f"timm knows no weights on the Hugging Face hub for {source}")
    file = cfg.hf_hub_filename or _TIMM_FILE
    return _fetch_from_hub(source, cfg.hf_hub_id, file, None)
