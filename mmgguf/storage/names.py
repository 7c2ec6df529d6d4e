"""Names of models in the stores of other programs: ``ollama://``, ``hf://`` and ``lmstudio://``.

What is on this machine is found there; what is not, ollama's registry and the Hugging Face Hub serve over https, with
ranges.  Nothing is guessed from a word without a scheme: that is a path.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import GGUFError, MissingExtraError, RemoteError, shown
from .base import Transfer
from .stores import (
    MAX_MANIFEST,
    hub_repositories,
    llamacpp_folders,
    lmstudio_folder,
    model_layer,
    ollama_blob,
    ollama_folders,
    read_manifest,
    snapshot,
)
from .urls import is_url, require_fsspec, scheme_of

__all__ = ["SCHEMES", "Found", "choose_file", "find", "hint", "resolve"]

SCHEMES: Final = ("ollama", "hf", "lmstudio")

#: As ollama's names are: no part is empty or begins with a dot.
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", re.ASCII)
_SHARD: Final = re.compile(r"-(?P<no>[0-9]{5})-of-[0-9]{5}\.gguf", re.IGNORECASE)
#: Files beside a model that are none: projectors, importance matrices, drafts.
_SIDE_FILES: Final = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
#: Docker's rule, which ollama shares: a registry on this machine may speak http.
_LOOPBACK: Final = re.compile(r"(localhost|127\.\d+\.\d+\.\d+)(:\d+)?")
_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model is: its `path` on this machine, or its `url`, to be asked with `headers`.

    `name` is a name of the file itself, beside which the other shards are.
    """

    path: str | None = None
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    name: str | None = None


def resolve(source: str, *, storage_options: Mapping[str, Any] | None = None, timeout: float = 30.0) -> str:
    """The path or URL that a name stands for.

    Parameters
    ----------
    source : str
        ``ollama://llama3.2:1b``, ``ollama://hf.co/org/repo:Q4_K_M``, ``hf://org/repo:Q4_K_M``,
        ``hf://org/repo@revision/file.gguf``, ``lmstudio://publisher/model/file.gguf``.  Anything else, a path or
        another URL, comes back as it is.
    storage_options : dict, optional
        ``token`` for the Hub, else the one that its tools have stored.
    timeout : float, default 30
        Seconds to wait for a registry or the Hub, which are asked for what is not on this machine.

    Returns
    -------
    str
        A path if the file is on this machine, otherwise an https URL, without credentials.

    Raises
    ------
    FileNotFoundError
        No store, registry or repository has it.
    StoreError
        The store's entry is broken: no JSON, a digest that is none, a blob that is missing or cut off.
    ValueError
        It is no name of its scheme.
    RemoteError, PermissionError
        The registry or the Hub cannot be asked.

    Examples
    --------
    >>> mmgguf.resolve("model.gguf")
    'model.gguf'
    """
    if not is_url(source) or scheme_of(source) not in SCHEMES:
        return source
    transfer = Transfer(timeout)
    transfer.check()
    found = find(source, storage_options or {}, transfer)
    return found.url if found.path is None else found.path


def find(name: str, options: Mapping[str, Any], transfer: Transfer) -> Found:
    """Where the model of a name is; errors as of `resolve`."""
    scheme, _, rest = name.partition("://")
    return {"ollama": _find_ollama, "hf": _find_hub, "lmstudio": _find_lmstudio}[scheme.lower()](
        rest, options, transfer
    )


def _missing(name: str, text: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, text, name)


# ---------------------------------------------------------------- ollama


def _parse_ollama(text: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag."""
    *places, last = text.split("/")
    model, colon, tag = last.partition(":")
    parts = [*("registry.ollama.ai", "library")[: 2 - len(places)], *places, model, tag if colon else "latest"]
    if len(parts) != 4 or not _HOST.fullmatch(parts[0]) or not all(map(_PART.fullmatch, parts[1:])):
        raise ValueError(
            f"{shown('ollama://' + text)}: a name is [[host/]namespace/]model[:tag], as in ollama://llama3.2:1b"
        )
    return parts[0], parts[1], parts[2], parts[3]


def _find_ollama(text: str, options: Mapping[str, Any], transfer: Transfer) -> Found:
    parts = _parse_ollama(text)
    for folder in ollama_folders():
        manifest = _entry(folder / "manifests", parts)
        if manifest is not None:
            return Found(str(ollama_blob(folder, read_manifest(manifest), str(manifest))))
    host, namespace, model, tag = parts
    base = f"{'http' if _LOOPBACK.fullmatch(host) else 'https'}://{host}/v2/{namespace}/{model}"
    url = f"{base}/manifests/{tag}"
    try:
        layer = model_layer(_document(url, {"Accept": _MANIFEST}, options, transfer), url)
    except FileNotFoundError:
        raise _missing(f"ollama://{text}", f"Not pulled, and {host} has no such model") from None
    except MissingExtraError as error:
        raise _missing(f"ollama://{text}", f"Not pulled (to read it from {host}: {error})") from None
    return Found(url=f"{base}/blobs/sha256:{layer.digest}")


def _entry(root: Path, parts: Iterable[str]) -> Path | None:
    """The file at the end of some folders; names differ in case only, as ollama has it."""
    path = root
    for part in parts:
        exact = path / part
        if not exact.exists():
            try:
                exact = next(path / name for name in sorted(os.listdir(path)) if name.lower() == part.lower())
            except (OSError, StopIteration):
                return None
        path = exact
    return path if path.is_file() else None


def _document(url: str, headers: dict[str, str], options: Mapping[str, Any], transfer: Transfer) -> bytes:
    fsspec = require_fsspec()
    try:
        fs = fsspec.filesystem("https", **{name: value for name, value in options.items() if name != "token"})
    except ImportError:
        raise MissingExtraError("aiohttp", "remote") from None
    from .http import fetch_document

    data: bytes = fsspec.asyn.sync(fs.loop, fetch_document, url, fs, transfer, headers, MAX_MANIFEST)
    return data


# ---------------------------------------------------------------- the Hub


def _parse_hub(text: str) -> tuple[str, str, str, str]:
    """Repository, revision, path of a file and quantization; the last two may be empty."""
    from urllib.parse import unquote

    org, _, rest = text.partition("/")
    repository, _, path = rest.partition("/")
    repository, _, quant = repository.partition(":")
    repository, at, revision = repository.partition("@")
    revision = unquote(revision) if at else "main"
    names = [org, repository, *([quant] if quant else []), *(revision.split("/") if at else [])]
    parts = path.split("/") if path else []
    if not all(map(_PART.fullmatch, names)) or not all(p not in ("", ".", "..") and "\\" not in p for p in parts):
        raise ValueError(
            f"{shown('hf://' + text)}: a name is org/repo[@revision]/path.gguf or org/repo[:quantization], as in "
            "hf://org/repo:Q4_K_M"
        )
    if quant and path:
        raise ValueError(f"{shown('hf://' + text)}: has both a quantization and the path of a file")
    return f"{org}/{repository}", revision, path, quant


def choose_file(files: Iterable[str], quant: str) -> str | None:
    """The file of a repository that llama.cpp would choose.

    Parameters
    ----------
    files : iterable of str
        Paths in the repository, in its order.
    quant : str
        As ``Q4_K_M``; empty for Q4_K_M, else Q8_0, else any.

    Returns
    -------
    str or None
        None if no file fits.
    """
    models = [path for path in files if _is_model(path)]
    for wanted in [quant] if quant else ["Q4_K_M", "Q8_0"]:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        if (fitting := next(filter(pattern.search, models), None)) is not None:
            return fitting
    return models[0] if models and not quant else None


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    shard = _SHARD.search(name)
    return (
        name.endswith(".gguf")
        and not any(part in name for part in _SIDE_FILES)
        and (not shard or shard["no"] == "00001")
    )


def _find_hub(text: str, options: Mapping[str, Any], transfer: Transfer) -> Found:
    if text.startswith(("datasets/", "spaces/", "buckets/")):
        raise ValueError(f"{shown('hf://' + text)}: only repositories of models have such names; use the https URL")
    repository, revision, path, quant = _parse_hub(text)
    name = f"hf://{text}"
    for folder in hub_repositories(repository):
        local = snapshot(folder, revision)
        if local is None:
            continue
        files = sorted(p.relative_to(local).as_posix() for p in local.rglob("*.gguf") if p.is_file())
        chosen = path if path in files else None if path else choose_file(files, quant)
        if chosen is not None:
            return Found(str(local / chosen))
    if revision == "main":
        prefix = repository.replace("/", "_") + "_"
        for folder in llamacpp_folders():
            files = [
                file.name.removeprefix(prefix) for file in sorted(folder.glob("*.gguf")) if file.name.startswith(prefix)
            ]
            flat = path.replace("/", "_")
            chosen = flat if flat in files else None if path else choose_file(files, quant)
            if chosen is not None:
                return Found(str(folder / (prefix + chosen)))
    try:
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers
    except ImportError:
        raise _missing(
            name, f"In no cache of this machine ({MissingExtraError('huggingface_hub', 'remote')})"
        ) from None
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = options.get("token")
    if not path:
        files = _list_hub(huggingface_hub, endpoint, repository, revision, token, transfer, name)
        chosen = choose_file(files, quant)
        if chosen is None:
            there = ", ".join(shown(file) for file in files if file.endswith(".gguf"))
            raise _missing(
                name, f"No file of the repository fits ({f'it has {there:.400}' if there else 'none is GGUF'})"
            )
        path = chosen
    from urllib.parse import quote

    headers = build_hf_headers(token=token, library_name="mmgguf")
    url = f"{endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"
    return Found(url=url, headers=headers, name=f"hf://{repository}@{quote(revision, safe='')}/{path}")


def _list_hub(
    hub: Any, endpoint: str, repository: str, revision: str, token: Any, transfer: Transfer, name: str
) -> list[str]:
    """The paths of a repository's files, in the Hub's order."""
    errors = hub.errors
    failure: Exception
    try:
        info = hub.HfApi(endpoint=endpoint, token=token).model_info(
            repository, revision=revision, timeout=transfer.timeout
        )
        return [sibling.rfilename for sibling in info.siblings or []]
    except (errors.GatedRepoError, PermissionError):
        failure = PermissionError(errno.EACCES, "The Hub refuses access: a token is needed that may read it", name)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        text = "No such repository or revision on the Hub, or a token is needed to see it"
        failure = _missing(name, text)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = f"HTTP status {status}" if status else type(error).__name__
        failure = RemoteError(f"{name}: the Hub at {endpoint} cannot be asked for the repository's files ({text})")
    raise failure


# ---------------------------------------------------------------- LM Studio


def _find_lmstudio(text: str, options: Mapping[str, Any], transfer: Transfer) -> Found:
    name = f"lmstudio://{text}"
    parts = text.split("/")
    if not 2 <= len(parts) <= 4 or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(f"{shown(name)}: a name is publisher/model/file.gguf, or publisher/model if it has one file")
    root = lmstudio_folder() / "models"
    path = root.joinpath(*parts)
    if path.is_file():
        return Found(str(path))
    files = sorted(file.name for file in path.glob("*.gguf"))
    models = [file for file in files if _is_model(file)]
    if len(models) == 1:
        return Found(str(path / models[0]))
    there = f"; there are {', '.join(map(shown, files))}" if files else ""
    raise _missing(name, f"LM Studio has no such file in {root}{there}")


# ---------------------------------------------------------------- hints


def hint(path: str) -> str:
    """A suggestion for a path that does not exist; empty if there is none."""
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", path):
        return f"for a URL, type {shown(match[1] + '://' + path[match.end() :])}"
    if os.path.isabs(path) or path.startswith((".", "~")) or len(path) > 400:
        return ""
    for scheme, look in (("ollama", _is_pulled), ("hf", _is_cached), ("lmstudio", _is_in_lmstudio)):
        try:
            if look(path):
                return f"for the model of that name, type {scheme}://{path}"
        except (ValueError, OSError, GGUFError):
            continue
    return ""


def _is_pulled(text: str) -> bool:
    return any(_entry(folder / "manifests", _parse_ollama(text)) is not None for folder in ollama_folders())


def _is_cached(text: str) -> bool:
    return "/" in text and bool(hub_repositories(_parse_hub(text)[0]))


def _is_in_lmstudio(text: str) -> bool:
    return _find_lmstudio(text, {}, Transfer()).path is not None
