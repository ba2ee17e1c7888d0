"""Seals and signatures: what shows that a document is as it was written, and who wrote it.

A seal is a hash of the document, stored in the document: it no longer matches if the document is
changed. A signature shows who sealed it: making one takes a key, and keys are outside everything
that phasewatch writes. Only the standard library and ``config.disk`` are imported here;
``cryptography`` is, where a key is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config.disk import sync
from config.errors import PhasewatchError
from config.paths import expanded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEAL, SIGNATURE = "seal", "signature"
VARIABLE = "PHASEWATCH_KEYS"
PRIVATE, PUBLIC = ".key", ".pub"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VALUE = re.compile(r"[0-9a-f]{128}")
_MAX_KEY_BYTES = 10_000

Kind = Literal["manifest", "checkpoint", "bundle", "champion", "entry", "reference", "log"]
"""What is signed: a signature of one kind of document means nothing on another."""


class SigningError(PhasewatchError):
    """A key cannot be made, read or used; the message says why and what to do."""


class KeyNameError(SigningError):
    """A key cannot have this name."""


@dataclass(frozen=True)
class Signed:
    """What a document's signature says here."""

    state: Literal["unsigned", "unknown", "wrong", "holds"]
    by: str = ""  # name of the trusted key, or the id of an unknown one

    @property
    def line(self) -> str:
        return {
            "unsigned": "not signed",
            "unknown": f"signed with key {self.by}, which is not trusted here",
            "wrong": f"its signature by {self.by} is invalid: someone else changed it",
            "holds": f"signed by {self.by}",
        }[self.state]


# --- seals


def sealed(value: Mapping[str, Any], kind: Kind | None, *, indent: int | None = 1) -> bytes:
    """A JSON document with its own seal, and a signature if there is a key to sign with.

    Args:
        kind: of the signature; None: the document is never signed.
    """
    key = signing_key() if kind else None
    seal, signature = secrets.token_hex(), secrets.token_hex()  # stand where the values will
    document: dict[str, Any] = {**value, SEAL: seal}
    if key is not None:
        document[SIGNATURE] = {"key": key.id, "value": signature}
    text = json.dumps(document, indent=indent, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.replace(seal, "").replace(signature, "").encode()).hexdigest()
    text = text.replace(seal, digest)
    if key is not None and kind is not None:
        text = text.replace(signature, key.sign(kind, digest))
    return text.encode() + b"\n"


@dataclass(frozen=True)
class Unsealed:
    """A document whose seal holds, or an old one that has none."""

    value: dict[str, Any]  # without seal and signature
    digest: str | None  # what is signed; None: it was written before seals
    signature: Any

    def signed(self, kind: Kind) -> Signed:
        return signed(kind, self.digest, self.signature)


def parse_json(content: bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: says what is wrong, as a predicate: it is empty, is not JSON, where.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        if not content.strip():
            raise ValueError("is empty") from None
        raise ValueError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def unsealed(content: bytes, fields: Set[str], optional: Set[str] = frozenset()) -> Unsealed:
    """Read what ``sealed`` wrote.

    Args:
        fields: that it must have; nothing else may be in it but ``optional``. So a broken name of
            the seal does not make an old document, which had none.

    Raises:
        ValueError: it is not such a document, or it was changed after it was written.
    """
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    digest, signature = value.pop(SEAL, None), value.pop(SIGNATURE, None)
    if unknown := value.keys() - fields - optional:
        raise ValueError(f"has the unknown field {min(unknown)!r}")
    if missing := fields - value.keys():
        raise ValueError(f"lacks the field {min(missing)!r}")
    if digest is None:
        if signature is not None:
            raise ValueError("has a signature and no seal")
        return Unsealed(value, None, None)
    if not isinstance(digest, str) or _seal_of(content, digest, signature) != digest:
        raise ValueError("was changed after it was written")
    return Unsealed(value, digest, signature)


def _seal_of(content: bytes, digest: str, signature: Any) -> str:
    """The hash of a document without seal and signature; what is around them counts."""
    bare = content.removesuffix(b"\n").replace(digest.encode(), b"", 1)
    value = signature.get("value") if isinstance(signature, dict) else None
    if isinstance(value, str) and _VALUE.fullmatch(value):
        bare = bare.replace(value.encode(), b"", 1)
    return hashlib.sha256(bare).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("has a field twice")
    return value


# --- signatures


def signed(kind: Kind, digest: str | None, signature: Any) -> Signed:
    """What a signature over a digest says here."""
    if digest is None or signature is None:
        return Signed("unsigned")
    try:
        key, value = str(signature["key"]), str(signature["value"])
        content = bytes.fromhex(value)
    except (TypeError, KeyError, ValueError):
        return Signed("wrong", "an unreadable key")
    trusted = trusted_keys().get(key)
    if trusted is None:
        return Signed("unknown", key)
    return Signed("holds" if _holds(trusted.raw, kind, digest, content) else "wrong", trusted.name)


@lru_cache(maxsize=100_000)
def _holds(raw: bytes, kind: Kind, digest: str, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, _message(kind, digest))
    except InvalidSignature:
        return False
    return True


def _message(kind: Kind, digest: str) -> bytes:
    return f"phasewatch/{kind}/1\0{digest}".encode()


def signature_of(kind: Kind, digest: str) -> dict[str, str] | None:
    """A signature over a digest; None without a key to sign with."""
    key = signing_key()
    return None if key is None else {"key": key.id, "value": key.sign(kind, digest)}


def distrust(found: Signed, *, required: bool) -> str | None:
    """Why a document must not be used; None if it may.

    A signature that a trusted key did not make is never let pass; one that is missing, or of a key
    that nobody here trusts, is where signatures are not required.
    """
    if found.state == "wrong" or (required and found.state != "holds"):
        return found.line
    return None


# --- keys


@dataclass(frozen=True)
class TrustedKey:
    """Whose signatures hold here."""

    name: str
    id: str  # 16 hexadecimal digits
    raw: bytes


@dataclass(frozen=True)
class SigningKey:
    """The key that signs what is written here."""

    name: str
    id: str
    private: Ed25519PrivateKey

    def sign(self, kind: Kind, digest: str) -> str:
        return self.private.sign(_message(kind, digest)).hex()


def keys_folder() -> Path:
    """Where keys are: ``PHASEWATCH_KEYS``, or the user's folder for configuration."""
    if given := os.environ.get(VARIABLE):
        return expanded(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "phasewatch/keys"


def signing_key() -> SigningKey | None:
    """The key of this machine, None if it has none.

    Raises:
        SigningError: there are several, or it cannot be read.
    """
    return _signing_key(*_seen())


def trusted_keys() -> dict[str, TrustedKey]:
    """The keys whose signatures hold here, by id.

    Raises:
        SigningError: one cannot be read.
    """
    return _trusted_keys(*_seen())


def _seen() -> tuple[Path, tuple[tuple[str, int, int], ...]]:
    """The folder and its files as they are, so that keys are read again when they change."""
    folder = keys_folder()
    try:
        with os.scandir(folder) as entries:
            files = [e for e in entries if e.name.endswith((PRIVATE, PUBLIC))]
            states = [(e.name, e.stat().st_mtime_ns, e.stat().st_ino) for e in files]
    except FileNotFoundError:
        states = []
    except OSError as error:
        raise SigningError(f"{folder}: keys cannot be read: {error.strerror}") from None
    return folder, tuple(sorted(states))


@lru_cache(maxsize=8)
def _signing_key(folder: Path, files: tuple[tuple[str, int, int], ...]) -> SigningKey | None:
    names = [name for name, *_ in files if name.endswith(PRIVATE)]
    if not names:
        return None
    if len(names) > 1:
        raise SigningError(
            f"{folder}: has {len(names)} keys to sign with ({', '.join(names)}); keep one there"
        )
    path = folder / names[0]
    serialization = _serialization()
    try:
        private = serialization.load_pem_private_key(_read(path), password=None)
        raw = private.public_key().public_bytes_raw()
        private.sign(b"")
    except (ValueError, TypeError, AttributeError) as error:
        raise SigningError(f"{path}: not a private Ed25519 key ({error})") from None
    return SigningKey(path.stem, key_id(raw), private)


@lru_cache(maxsize=8)
def _trusted_keys(folder: Path, files: tuple[tuple[str, int, int], ...]) -> dict[str, TrustedKey]:
    keys = [_public(folder / name) for name, *_ in files if name.endswith(PUBLIC)]
    return {key.id: key for key in keys}


def _public(path: Path) -> TrustedKey:
    serialization = _serialization()
    try:
        raw = serialization.load_pem_public_key(_read(path)).public_bytes_raw()
        if len(raw) != 32:
            raise ValueError("it is of another kind")
    except (ValueError, TypeError, AttributeError) as error:
        raise SigningError(
            f"{path}: not a public Ed25519 key; give the NAME.pub that phasewatch keys new wrote"
        ) from error
    return TrustedKey(path.stem, key_id(raw), raw)


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError:
        raise SigningError(
            f"{keys_folder()}: keys cannot be used: cryptography is not installed. On a device, "
            "install phasewatch-device with its extra sign; elsewhere: pip install cryptography"
        ) from None
    return serialization


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise SigningError(f"{path}: cannot be read: {error.strerror}") from None


def key_id(raw: bytes) -> str:
    """The name of a public key that nobody chooses."""
    return hashlib.sha256(raw).hexdigest()[:16]


def new_key(name: str) -> TrustedKey:
    """Make this machine's key, and trust it. The private part is readable by its owner alone.

    Raises:
        KeyNameError: a key cannot have this name.
        SigningError: there is one already, or it cannot be written.
    """
    _check_name(name)
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = keys_folder()
    if (existing := signing_key()) is not None:
        raise SigningError(
            f"{folder}: this machine signs with {existing.name} already; to replace it, move "
            f"{existing.name}{PRIVATE} away first. What it signed stays trusted while "
            f"{existing.name}{PUBLIC} is here"
        )
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    secret_path, public_path = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    _write(secret_path, secret, 0o600)
    try:
        _write(public_path, _pem(private.public_key()), 0o644)
    except SigningError:
        secret_path.unlink()  # a key that nobody can trust
        raise
    return _public(public_path)


def trust(path: Path, name: str) -> TrustedKey:
    """Trust the signatures of a public key, under a name.

    Raises:
        KeyNameError: a key cannot have this name.
        SigningError: it is none, or the name is taken by another.
    """
    _check_name(name)
    key = _public(path)
    target = keys_folder() / f"{name}{PUBLIC}"
    if target.exists() and _public(target).raw != key.raw:
        raise SigningError(f"{target}: another key has this name; choose another name with --name")
    if not target.exists():
        _write(target, _read(path), 0o644)
    return TrustedKey(name, key.id, key.raw)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise KeyNameError(
            "a key's name may only contain letters, digits, dots, dashes and underscores, "
            f"got {name!r}"
        )


def _pem(public: Any) -> bytes:
    serialization = _serialization()
    return bytes(
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise SigningError(f"{path}: there is such a key already; choose another name") from None
    except OSError as error:
        raise SigningError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
    except OSError as error:
        path.unlink()  # half of it
        raise SigningError(f"{path}: cannot be written: {error.strerror}") from None
