"""Grammars for replies: the tokens that may come next in each row, as a packed mask from llguidance.

A ``Grammar`` is what was asked for, a ``GrammarCompiler`` belongs to a tokenizer, and a ``Matcher`` follows one row. A
row's next mask needs its last token on the host, so a call of decoding with masks makes one token.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int32
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from omni_jax.errors import cut, shown

# A hostile grammar must not stop the loop: these bound what is built and what one token may cost.
LIMITS = LLParserLimits(max_grammar_size=200_000, step_lexer_fuel=100_000, step_max_items=20_000, verbose_errors=False)
MOST_CHARACTERS = 1 << 18  # of a grammar
MOST_COMPILED = 64  # grammars kept
BLANKS = {"whitespace_pattern": r"[ \n\r\t]{0,24}"}  # of JSON: without a bound, a model may write blanks to its limit
TEXT = "TEXT: /(.|\\n)*/\n"  # any text; added tokens such as <tool_call> are no text


@dataclass(frozen=True)
class Grammar:
    """What a reply must be.

    Attributes:
        kind: "json" (a schema), "regex", "lark", or "calls" (text and tool calls, in Lark).
        text: of the schema, the regular expression or the Lark grammar.
    """

    kind: str
    text: str

    @classmethod
    def of(cls, option: Any, name: str = "grammar") -> "Grammar":
        """The grammar of an option with one key: ``json`` (a schema), ``regex``, ``choice`` (a list of texts) or ``lark``.

        Raises:
            ValueError: no such option, in one line.
        """
        if not isinstance(option, Mapping) or len(option) != 1 or next(iter(option)) not in FORMS:
            raise ValueError(f"{name}: expected a dict with one of {', '.join(FORMS)}, got {shown(option)}")
        ((kind, value),) = option.items()
        if kind == "json":
            if not isinstance(value, Mapping):
                raise ValueError(f"{name}: expected a JSON schema as a dict, got {shown(value)}")
            return cls("json", _dumped(value, name))
        if kind == "choice":
            if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name}: expected choice as a list of texts, got {shown(value)}")
            return cls("lark", f"start: {' | '.join(json.dumps(item) for item in value)}\n")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}: expected {kind} as a text, got {shown(value)}")
        return cls(kind, value)

    @classmethod
    def of_response_format(cls, option: Any) -> "Grammar | None":
        """The grammar of OpenAI's ``response_format``; None for plain text.

        Raises:
            ValueError: no such format, in one line.
        """
        kind = option.get("type") if isinstance(option, Mapping) else None
        if kind == "text":
            return None
        if kind == "json_object":
            return cls("json", _dumped({"type": "object"}, "response_format"))
        inner = option.get("json_schema") if kind == "json_schema" else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
            raise ValueError(
                'response_format: expected {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": '
                f'{{"schema": {{...}}}}}}, got {shown(option)}'
            )
        return cls("json", _dumped(inner["schema"], "response_format"))

    @classmethod
    def of_tools(cls, tools: Sequence[Mapping[str, Any]], choice: Any = "auto") -> "Grammar":
        """Text with calls of functions in Qwen's form, each as its schema says.

        Args:
            tools: JSON schemas of functions, bare or under "function".
            choice: "auto", any number of calls in text; "required", one or more calls and nothing else; or one call of a
                function by name: ``{"type": "function", "function": {"name": ...}}``.

        Raises:
            ValueError: tools without names or schemas, or no such choice, in one line.
        """
        functions = [tool.get("function", tool) if isinstance(tool, Mapping) else tool for tool in tools]
        if not functions or not all(
            isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in functions
        ):
            raise ValueError(f'tools: expected functions with a "name", got {shown(tools)}')
        named = choice.get("function", choice) if isinstance(choice, Mapping) else None
        if isinstance(named, Mapping):
            functions = [each for each in functions if each["name"] == named.get("name")]
        if not (isinstance(named, Mapping) or choice in ("auto", "required")) or not functions:
            raise ValueError(f"tool_choice: expected auto, required, none or the name of a tool, got {shown(choice)}")
        rules = []
        for number, function in enumerate(functions):
            schema = _dumped(function.get("parameters") or {"type": "object"}, "tools")
            name = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
            rules.append(f'call_{number}: {name} %json {schema} "}}"\n')
        start = {"auto": "(TEXT call)* TEXT", "required": 'call ("\\n" call)*'}.get(str(choice), "call")
        bodies = " | ".join(f"call_{number}" for number in range(len(rules)))
        call = f'call: <tool_call> "\\n" ({bodies}) "\\n" </tool_call>\n'
        return cls("calls", f"%llguidance {{}}\nstart: {start}\n{TEXT}{call}{''.join(rules)}")


FORMS = ("json", "regex", "choice", "lark")


class Matcher:
    """Follows one row of a reply through its grammar.

    Attributes:
        ends: ids that end the reply where the grammar lets it end.
        ended: whether one of them was read.
    """

    def __init__(self, matcher: LLMatcher, ends: tuple[int, ...]):
        self._matcher, self.ends, self.ended = matcher, ends, False

    @property
    def accepting(self) -> bool:
        """Whether the reply may end here."""
        return self._matcher.is_accepting()

    def consume(self, tokens: Sequence[int]) -> None:
        """Reads tokens of the reply; those from the one that ends it on are ignored.

        Raises:
            ValueError: a token that the grammar does not allow, or a grammar that became too costly; in one line.
        """
        for token in tokens:
            self.ended |= token in self.ends and self.accepting
            if self.ended:
                return
            if not self._matcher.consume_token(int(token)):
                raise ValueError(f"grammar: {_line(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """The tokens that must come next: they may be fed without being sampled, and are not consumed yet."""
        return [] if self.ended else list(self._matcher.compute_ff_tokens())

    def fork(self) -> "Matcher":
        """An independent matcher in the same state."""
        other = Matcher(self._matcher.deep_copy(), self.ends)
        other.ended = self.ended
        return other


class GrammarCompiler:
    """Compiles grammars for a tokenizer, and keeps those used last. Threads may share it.

    Attributes:
        vocabulary: width of the logits.
        end: the tokenizer's id that ends a reply.
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        """Reads the tokenizer, which takes a second.

        Args:
            tokenizer: a fast one, from ``prompt.load_tokenizer``.
            vocabulary: width of the logits; ids that the tokenizer does not have are never allowed.
        """
        self._added = tokenizer.get_added_vocab()
        written = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in written["added_tokens"]:
            token["special"] = True  # so that <tool_call> is no text within a JSON string
        self.end = int(tokenizer.eos_token_id)
        self._tokenizer = LLTokenizer(json.dumps(written), n_vocab=vocabulary, eos_token=self.end)
        self.vocabulary = vocabulary
        self._executor = LLExecutor()
        self._kept: OrderedDict[tuple[Grammar, bool], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, grammar: Grammar, *, ends: Sequence[int] = (), thinking: bool = False) -> Matcher:
        """A matcher at the beginning of a reply.

        Args:
            grammar: what the reply must be.
            ends: ids that end the reply, beside the tokenizer's own; they are allowed where it may end.
            thinking: the prompt has opened thinking, which stands before what the grammar describes.

        Raises:
            ValueError: an impossible or too large grammar, in one line with llguidance's reason.
        """
        key = grammar, thinking
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None:
            found = self._compile(grammar, thinking)
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > MOST_COMPILED:
                    self._kept.popitem(last=False)
        return Matcher(found.deep_copy(), (self.end, *(end for end in ends if 0 <= end < self.vocabulary)))

    def masks(self, rows: int) -> Int32[np.ndarray, "B V2"]:
        """Masks that allow every token: bit ``v % 32`` of word ``v // 32`` is that of token v."""
        return allocate_token_bitmask(rows, self.vocabulary)

    def fill(self, masks: Int32[np.ndarray, "B V2"], matchers: Mapping[int, Matcher]) -> None:
        """Writes the masks of rows that have a matcher, in threads; the other rows are left as they are.

        Raises:
            ValueError: a grammar became too costly; in one line.
        """
        live = {row: matcher for row, matcher in matchers.items() if not matcher.ended}
        if live:
            fill_next_token_bitmask_par(
                self._executor, [(matcher._matcher, row) for row, matcher in live.items()], masks
            )
        for row, matcher in matchers.items():
            if matcher.ended:
                masks[row] = 0
            elif matcher._matcher.is_error():
                raise ValueError(f"grammar: {_line(matcher._matcher.get_error())}")
            if matcher.ended or matcher.accepting:
                for end in matcher.ends:
                    masks[row].view(np.uint32)[end // 32] |= np.uint32(1 << end % 32)

    def _compile(self, grammar: Grammar, thinking: bool) -> LLMatcher:
        if len(grammar.text) > MOST_CHARACTERS:
            raise ValueError(f"grammar: expected at most {MOST_CHARACTERS:,} characters, got {len(grammar.text):,}")
        if missing := [tag for tag in ("<tool_call>",) if grammar.kind == "calls" and tag not in self._added]:
            raise ValueError(f"tool_choice: this tokenizer has no {missing[0]}; leave tool_choice out")
        part = {"json_schema": json.loads(grammar.text)} if grammar.kind == "json" else {"lark_grammar": grammar.text}
        if grammar.kind == "regex":
            part = json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]
        parts: list[dict[str, Any]] = [{**part, "name": "answer"}]
        if thinking:
            lark = f'%llguidance {{}}\nstart: TEXT </think> "\\n\\n" @answer\n{TEXT}'
            parts.insert(0, {"name": "whole", "lark_grammar": lark})
        matcher = LLMatcher(self._tokenizer, json.dumps({"grammars": parts}), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(f"grammar: {_line(matcher.get_error())}")
        return matcher


def _dumped(schema: Any, name: str) -> str:
    try:
        return json.dumps({"x-guidance": BLANKS, **schema}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected a JSON schema, got {cut(str(error), 200)}") from None


def _line(error: str) -> str:
    """An error of llguidance in one line."""
    return cut(re.sub(r"\s+", " ", error).strip(), 350)
