"""Who teaches in ``minimoe distill``: one checkpoint for all text, or one for each of some domains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from minimoe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from minimoe.data import Tokenizer
    from minimoe.model import MoETransformer


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The models of ``--teacher``, loaded.

    Attributes:
      general: judges every domain that has no teacher of its own; None if there is no such model.
      special: the others, by domain.
      tokenizer: of all of them. description: one line.
    """

    general: MoETransformer | None
    special: dict[str, MoETransformer]
    tokenizer: Tokenizer
    description: str

    def __iter__(self) -> Iterator[MoETransformer]:
        models = [*self.special.values(), *([] if self.general is None else [self.general])]
        return iter({id(model): model for model in models}.values())

    @property
    def vocab_size(self) -> int:
        """Of the first; `check_teacher` compares the others with the student."""
        return next(iter(self)).config.vocab_size

    def of(self, domain: str) -> MoETransformer:
        """Who judges a domain that `check` has let through."""
        model = self.special.get(domain, self.general)
        assert model is not None, domain
        return model

    def check(self, domains: Collection[str]) -> None:
        """Raises:
        UserError: if a domain has no teacher, or a teacher no domain.
        """
        unknown = [domain for domain in self.special if domain not in domains]
        if unknown:
            raise UserError(
                f"--teacher {unknown[0]}=...: the student reads no domain of that name, but {', '.join(sorted(domains))}; "
                "name one of these (reasoning problems come with --tasks or --on-policy)"
            )
        missing = [domain for domain in sorted(domains) if self.general is None and domain not in self.special]
        if missing:
            raise UserError(
                f"no --teacher for {', '.join(missing)}; add --teacher {missing[0]}=CHECKPOINT, or one without a domain "
                "for all the rest"
            )

    def by_domain(self) -> MoETransformer | dict[str, MoETransformer]:
        """As `minimoe.distill.Distillation` takes them: one model, or one for each domain and ``""`` for the rest."""
        if not self.special and self.general is not None:
            return self.general
        return self.special | ({} if self.general is None else {"": self.general})


def load_teachers(named: list[str]) -> Teachers:
    """Loads ``CHECKPOINT`` and ``DOMAIN=CHECKPOINT``, each checkpoint once.

    Raises:
      UserError: if two judge the same, a checkpoint is missing or broken, or their tokenizers differ.
    """
    from minimoe.hub import resolve_with_tokenizer

    wanted: dict[str, str] = {}
    for name in named:
        domain, checkpoint = ("", name) if "=" not in name or Path(name).exists() else name.split("=", 1)
        if domain in wanted:
            what = f"for {domain}" if domain else "without a domain"
            raise UserError(f"two --teacher {what}, {wanted[domain]} and {checkpoint}; give one, or DOMAIN=CHECKPOINT")
        wanted[domain] = checkpoint
    found = {checkpoint: resolve_with_tokenizer(checkpoint) for checkpoint in dict.fromkeys(wanted.values())}
    first, (_, tokenizer, _, _) = next(iter(found.items()))
    for checkpoint, (_, other, _, _) in found.items():
        if other.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"--teacher {checkpoint} reads with the tokenizer {other.name}, {first} with {tokenizer.name}; teachers of "
                "one student need the same"
            )
    lines = [
        f"{domain or 'all the rest' if len(wanted) > 1 else ''}: {found[one][3]}" for domain, one in wanted.items()
    ]
    special = {domain: found[one][0] for domain, one in wanted.items() if domain}
    general = found[wanted[""]][0] if "" in wanted else None
    return Teachers(general, special, tokenizer, "; ".join(lines).removeprefix(": "))
