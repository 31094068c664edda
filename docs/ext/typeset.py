"""Formulas of docstrings, written in Unicode to be read in a terminal, as LaTeX to be typeset.

    dζ = Π S B dW + ½ ∂²Φ_S(ζ)[S Σ S] dt   becomes   d\\zeta = \\Pi S B dW + \\tfrac12 \\partial^{2}\\Phi_{S} …

A translation word by word, for the few dozen signs that the docstrings use; columns (three spaces and more) become
space, lines become lines.
"""

import re

LOWER = ["alpha", "beta", "gamma", "delta", "varepsilon", "zeta", "eta", "theta", "lambda", "mu"]
LOWER += ["nu", "xi", "pi", "rho", "sigma", "tau", "varphi", "psi", "omega"]
UPPER = ["Gamma", "Delta", "Theta", "Lambda", "Pi", "Sigma", "Phi", "Psi", "Omega"]
GREEK = dict(zip("αβγδεζηθλμνξπρστφψωΓΔΘΛΠΣΦΨΩ", LOWER + UPPER, strict=True))
SIGNS = {
    "∂": r"\partial ", "∇": r"\nabla ", "∫": r"\int ", "←": r"\leftarrow ", "→": r"\to ", "−": "-", "·": r"\cdot ",
    "×": r"\times ", "≈": r"\approx ", "≤": r"\le ", "≥": r"\ge ", "≪": r"\ll ", "∈": r"\in ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "‖": r"\|", "∥": r"\parallel ", "∞": r"\infty ", "½": r"\tfrac12 ", "~": r"\sim ", "±": r"\pm ",
    "⊗": r"\otimes ", "…": r"\dots ", "%": r"\%",
}  # fmt: skip
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ½", [*"0123456789", "-", "+", r"\top ", "1/2"], strict=True))
OPERATORS = ("diag", "Diag", "tr", "Var", "max", "min", "log", "exp", "sin", "cos")
WIDTH = 62  # characters of a docstring that a row of a display has room for
WORD = r"s\.e\.|[SO]DE|[a-zA-Z]*[a-z]{2,}[a-zA-Z]*"
TOKEN = re.compile(
    r"(?P<cite>\([A-Z][^()]*\b(?:19|20)\d\d\))"
    r"|(?P<dot>\w\u0307)"
    r"|(?P<sum>Σ(?=_[a-z]\b|_[a-z][^a-zA-Z]))"
    r"|(?P<root>√)"
    r"|_(?P<below>\{[^{}]*\}|max|min|[a-z]{1,2}(?![a-z])|[a-z]{3,}|[A-ZΓ-ω∥]|\d+)"
    r"|\^(?P<above>\{[^{}]*\}|\w|½)"
    r"|(?P<raised>[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ]+)"
    r"|(?P<index>(?<=[A-Za-zα-ω])\d(?!\w))"
    rf"|(?P<words>(?:{WORD})(?: (?:{WORD}|a)(?![_(\w]))*)"
    r"|(?P<brace>[{}])"
    r"|(?P<any>.)",
    re.S,
)


def latex(block: str) -> str:
    """An indented block of a docstring as the body of a display."""
    rows = [r" \qquad ".join(map(translated, row)) for line in block.split("\n") for row in _rows(line)]
    return rows[0] if len(rows) == 1 else "\\begin{gathered}\n" + " \\\\\n".join(rows) + "\n\\end{gathered}"


def _rows(line: str) -> list[list[str]]:
    """The columns of a line, in as many rows as fit the width of a page."""
    rows: list[list[str]] = []
    for part in re.split(r" {3,}", line.strip()):
        if rows and sum(map(len, rows[-1])) + len(part) <= WIDTH:
            rows[-1].append(part)
        else:
            rows.append([part])
    return rows


def translated(text: str) -> str:
    """One formula, or words."""
    out, rest = "", text
    while rest:
        found = TOKEN.match(rest) if not out else TOKEN.match(text, len(text) - len(rest))
        assert found is not None
        rest = text[found.end() :]
        if found["root"]:
            inside, rest = _argument(rest)
            out += rf"\sqrt{{{translated(inside)}}}"
        else:
            out += _sign(found)
    return re.sub(r" {2,}", " ", out).strip()


def _argument(rest: str) -> tuple[str, str]:
    """What stands under a root: the next parenthesis, or the next sign."""
    if not rest.startswith("("):
        return rest[:1], rest[1:]
    depth = 0
    for place, sign in enumerate(rest):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return rest[1:place], rest[place + 1 :]
    return rest, ""


def _sign(found: re.Match[str]) -> str:
    kind, sign = found.lastgroup, found[0]
    if kind == "dot":
        return rf"\dot{{{translated(sign[0])}}}"
    if kind == "sum":
        return r"\sum "
    if kind in ("below", "above"):
        inside = found[kind].strip("{}")
        inside = "1/2" if inside == "½" else inside
        inside = rf"\mathrm{{{inside}}}" if re.fullmatch("[a-z]{3,}", inside) else translated(inside)
        return f"{'_' if kind == 'below' else '^'}{{{inside}}}"
    if kind == "raised":
        return f"^{{{''.join(RAISED[s] for s in sign)}}}"
    if kind == "index":
        return f"_{sign}"
    if kind == "words":
        return _words(sign, found.string[: found.start()], found.string[found.end() :])
    if kind == "cite":
        return rf"\text{{{sign}}}"
    if kind == "brace":
        return rf"\{sign} "
    return rf"\{GREEK[sign]} " if sign in GREEK else SIGNS.get(sign, sign)


def _words(text: str, before: str, after: str) -> str:
    """Operators upright, differentials and products of letters (dt, ct, nb) as they are, all else as text."""
    if text in OPERATORS:
        return rf"\operatorname{{{text}}}"
    if re.fullmatch(r"d[a-zA-Z]", text):
        return rf"\,{text}" if re.search(r"[^=,+−] $", before) else text
    if re.fullmatch(r"[b-df-hj-np-tv-z]{2}", text):
        return text
    # TeX drops spaces next to words, and sets its own around relations.
    left = " " if re.search(r"[^=+−~,] $", before) else ""
    right = " " if re.match(r" [^=+−~,]", after) else ""
    return rf"\text{{{left}{text}{right}}}"
