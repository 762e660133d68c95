"""HTML pieces of the report: everything that comes from a run passes through `text`, so it cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from ftlib.evals import plots
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import clean

LONG = 420  # characters of an example's text; the rest is in the predictions file
_NUMBER = re.compile(r'[-+–]?\d[^< ]{0,14}')  # a cell that is kept in one line


def text(value: object) -> str:
  """`value` as escaped text, fit for an element's content and for a quoted attribute."""
  return html.escape(clean(value), quote=True)


def word(value: object) -> str:
  """As `text`, for a name: it may break after an underscore, slash or dot, where a narrow cell needs it."""
  return re.sub(r'(?<=\w)([_/.])(?=\w)', r'\1<wbr>', text(value))


def page(title: str, body: str) -> str:
  """The whole document. Its policy forbids scripts and any request, whatever a text in it may hold."""
  policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="generator" content="ftlib">\n'
    f'<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
  )


def section(title: str, *parts: str, anchor: str, lead: str = '') -> str:
  """A section under a heading; '' if no part says anything."""
  body = '\n'.join(part for part in parts if part)
  if not body:
    return ''
  lead = f'<p class="lead">{text(lead)}</p>\n' if lead else ''
  return f'<section id="{text(anchor)}">\n<h2>{text(title)}</h2>\n{lead}{body}\n</section>'


def block(title: str, body: str, *, note: str = '', kind: str = '') -> str:
  """A titled box, one cell of a `grid`; `kind='wide'` spans the row. '' for an empty body."""
  if not body:
    return ''
  note = f'<p class="note">{text(note)}</p>' if note else ''
  return f'<div class="block {kind}"><h3>{text(title)}</h3>{body}{note}</div>'


def figure(chart: plots.Chart | None, *, kind: str = '') -> str:
  """A chart with its title above and its reading aid below; '' for None."""
  if chart is None:
    return ''
  note = f'<p class="note">{text(chart.note)}</p>' if chart.note else ''
  opening = f'<svg role="img" aria-label="{text(chart.alt)}" '
  svg = chart.svg.replace('<svg ', opening, 1)
  return (
    f'<figure class="block {kind}"><figcaption><h3>{text(chart.title)}</h3></figcaption>'
    f'<div class="scroll"><div class="canvas">{svg}</div></div>{note}</figure>'
  )


def grid(*cells: str) -> str:
  """Cells two abreast on a wide screen, one under the other on a narrow one; '' without cells."""
  cells = [cell for cell in cells if cell]
  return '<div class="grid">\n' + '\n'.join(cells) + '\n</div>' if cells else ''


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
  """Key numbers as (label, value, remark)."""
  cells = [
    f'<div class="tile"><dt>{text(label)}</dt><dd>{text(value)}</dd>'
    + (f'<dd class="remark">{text(remark)}</dd>' if remark else '')
    + '</div>'
    for label, value, remark in items
  ]
  return '<dl class="tiles">\n' + '\n'.join(cells) + '\n</dl>' if cells else ''


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = '') -> str:
  """A table whose first column names the row. Cells are HTML: pass data through `text`. '' without rows."""
  body = [
    '<tr>' + f'<th scope="row">{row[0]}</th>' + ''.join(f'<td>{cell}</td>' for cell in row[1:]) + '</tr>'
    for row in rows
  ]
  if not body:
    return ''
  top = ''.join(f'<th scope="col">{word(name)}</th>' for name in head)
  return (
    f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n<tbody>\n'
    + '\n'.join(body)
    + '\n</tbody></table></div>'
  )


def example_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of examples, wide text first, which a narrow screen shows as cards. Cells are HTML. '' without rows."""

  def named(name: str, cell: str) -> str:
    number = ' class="number"' if _NUMBER.fullmatch(cell) else ''
    return f'<span data-name="{text(name)}"{number}>{cell}</span>'

  labelled = [(row[0], *map(named, head[1:], row[1:])) for row in rows]
  return table(head, labelled, kind='examples')


def cut(value: object) -> str:
  """A value of an example as text of at most `LONG` characters, a dash for None."""
  value = fmt.plain(value) if value is not None else '–'
  return text(value if len(value) <= LONG else value[: LONG - 1].rstrip() + '…')


def shown(row: Mapping) -> str:
  """What an example asks, with its second text, if it has one, and its id."""
  pair = f'<span class="pair" dir="auto">{cut(row["pair"])}</span>' if row.get('pair') is not None else ''
  identity = f'<span class="id">{cut(row["id"])}</span>' if row.get('id') is not None else ''
  return f'<span dir="auto">{cut(row.get("text", row.get("prompt", "")))}</span>{pair}{identity}'


def bar(share: float) -> str:
  """A number in [0, 1] with a bar under it; values outside keep a full or empty bar."""
  width = 100 * min(max(share, 0.0), 1.0)
  return f'<span class="bar" style="--w:{width:.1f}%">{share:.3f}</span>'


def details(title: str, body: str) -> str:
  """A folded box; '' for an empty body."""
  return f'<details><summary>{text(title)}</summary>\n{body}\n</details>' if body else ''


def code(value: str) -> str:
  return f'<pre><code>{text(value)}</code></pre>'


CSS = """
:root{--ink:#1b2430;--soft:#55606e;--line:#dfe3e8;--wash:#f5f6f8;--paper:#fff;--blue:#2b5c8a;--rust:#b5532a;
--good:#2f7d74;color-scheme:light}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main{max-width:1140px;margin:0 auto;padding:40px 28px 64px}
h1{font-size:2.1rem;line-height:1.2;margin:0 0 14px;letter-spacing:-.018em;font-weight:680;overflow-wrap:anywhere}
h2{font-size:1.4rem;line-height:1.25;margin:0 0 18px;letter-spacing:-.012em;font-weight:660}
h3{font-size:1rem;line-height:1.35;margin:0 0 10px;font-weight:640}
p{margin:0 0 12px}
section{margin-top:52px;padding-top:30px;border-top:1px solid var(--line)}
.lead{color:var(--soft);margin:-8px 0 22px;max-width:74ch}
.eyebrow{color:var(--soft);font-size:.8rem;letter-spacing:.09em;text-transform:uppercase;font-weight:600;margin:0 0 8px}
.head{display:flex;flex-wrap:wrap;gap:24px 56px;justify-content:space-between;align-items:flex-end}
.head>div:first-child{flex:1 1 420px;min-width:0}
.facts{display:flex;flex-wrap:wrap;gap:8px 32px;margin:0}
.facts div{min-width:0}
.facts dt{color:var(--soft);font-size:.8rem;line-height:1.4}
.facts dd{margin:0;font-weight:560;overflow-wrap:anywhere}
.headline{flex:0 1 auto;border-left:4px solid var(--blue);padding:2px 0 2px 20px}
.headline .value{font-size:3.2rem;line-height:1.05;font-weight:680;letter-spacing:-.03em;color:var(--blue);margin:0}
.headline p{margin:4px 0 0;font-weight:560}
.headline p+p{color:var(--soft);font-weight:400;font-size:.875rem;margin:2px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(152px,1fr));gap:12px;margin:34px 0 0}
.tile{background:var(--wash);border-radius:10px;padding:14px 16px;min-width:0}
.tile dt{color:var(--soft);font-size:.8rem;line-height:1.35}
.tile dd{margin:4px 0 0;font-size:1.4rem;line-height:1.2;font-weight:640;letter-spacing:-.015em;overflow-wrap:anywhere}
.tile dd.remark{font-size:.8rem;font-weight:400;color:var(--soft);letter-spacing:0;line-height:1.4}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:40px 44px;margin:0 0 40px}
.grid:last-child{margin-bottom:0}
.block{margin:0;min-width:0}
.wide{grid-column:1/-1}
.note{color:var(--soft);font-size:.84rem;line-height:1.45;margin:8px 0 0;max-width:74ch}
.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit}
.classes .bar{width:min(16vw,220px)}
.long .scroll{max-height:620px;overflow:auto}
.long thead th{position:sticky;top:0;background:var(--paper);box-shadow:0 1px 0 #b9c1cb}
.large .canvas{min-width:700px;max-width:900px}
table{border-collapse:collapse;width:100%;font-size:.9rem;line-height:1.4}
th,td{padding:7px 10px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child{text-align:left;padding-left:0}
td:last-child,thead th:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:560;font-size:.8rem;border-bottom-color:#b9c1cb;vertical-align:bottom}
tbody th{font-weight:500;white-space:normal;min-width:6.5em}
.aside{color:var(--soft);font-size:.84rem;font-weight:400;margin-left:12px}
.bar{display:inline-block;width:84px;background:linear-gradient(var(--blue),var(--blue)) left bottom/var(--w) 3px
no-repeat,linear-gradient(var(--line),var(--line)) left bottom/100% 3px no-repeat;padding-bottom:4px}
.examples td,.examples th{text-align:left;white-space:normal}
.examples tbody th{width:56%;font-weight:400;overflow-wrap:anywhere;padding-right:24px}
.examples td{overflow-wrap:anywhere}
.examples .number{white-space:nowrap}
.pairs td{white-space:normal}
.wrap td{overflow-wrap:anywhere}
.wrap td,.pairs td:nth-child(2){text-align:left}
.pairs th:nth-child(2){text-align:left}
.examples .pair{display:block;margin-top:6px;padding-left:12px;border-left:3px solid var(--line)}
.examples .id{display:block;margin-top:2px;color:var(--soft);font-size:.78rem}
.said .examples span[dir]{white-space:pre-wrap}
.said .examples tbody th{width:auto;min-width:12em}
.said .examples td span[dir]{display:inline-block;min-width:7em}
.sample{margin:0 0 28px;padding:0 0 4px}
.sample .asked{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 12px}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:12px;margin:0}
.sides div{background:var(--wash);border-radius:8px;padding:10px 14px;min-width:0}
.sides .new{box-shadow:inset 3px 0 0 var(--blue)}
.sides dt,.sample .id{color:var(--soft);font-size:.8rem}
.sides dd{margin:2px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem;line-height:1.45}
mark{background:#cfe6d8;color:inherit;border-radius:2px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
mark.missed{background:#f6d9c9}
mark.spurious{background:#f4e6ae}
mark.partly{background:#ddd8f2}
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 20px;line-height:1.9}
.tokens span{border-radius:3px;padding:2px 0;-webkit-print-color-adjust:exact;print-color-adjust:exact}
.wrong{color:var(--rust);font-weight:600}
.right{color:var(--good);font-weight:600}
.counts td,.counts th{padding:3px 6px;font-size:.78rem;text-align:right}
.counts thead th{white-space:normal;min-width:8em}
.counts tbody th,.counts th:first-child{text-align:left;min-width:0;position:sticky;left:0;background:var(--paper)}
.counts tbody th{white-space:nowrap}
.counts .hit{font-weight:700;color:var(--blue)}
.counts .zero{color:#8a94a0}
details{border:1px solid var(--line);border-radius:10px;margin:12px 0 0;padding:0 18px}
summary{cursor:pointer;font-weight:600;padding:12px 0}
summary:focus-visible{outline:3px solid var(--blue);outline-offset:2px;border-radius:4px}
details+.grid{margin-top:40px}
details[open]{padding-bottom:16px}
pre{background:var(--wash);border-radius:8px;padding:14px 16px;margin:0 0 12px;overflow:auto;white-space:pre-wrap;
overflow-wrap:anywhere;max-height:560px;
font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{font:inherit}
footer{margin-top:56px;color:var(--soft);font-size:.84rem}
@media(max-width:760px){
main{padding:26px 16px 44px}
h1{font-size:1.6rem}
section{margin-top:38px;padding-top:24px}
.grid{grid-template-columns:minmax(0,1fr);gap:32px}
.headline .value{font-size:2.6rem}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
.examples thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.examples,.examples tbody,.examples tr,.examples td,.examples tbody th{display:block;width:auto}
.examples tr{padding:10px 0;border-bottom:1px solid var(--line)}
.examples td,.examples tbody th{border:0;padding:2px 0}
.examples td{display:inline-block;margin-right:16px}
table:not(.examples){font-size:.84rem}
table:not(.examples,.counts) :is(th,td){padding-left:4px;padding-right:4px}
table:not(.examples,.counts) :is(th:first-child){padding-left:0}
thead th{white-space:normal;font-size:.76rem}
tbody th{min-width:4.6em}
.aside{display:block;margin:0}
.bar,.classes .bar{width:42px}
.examples td>span::before{content:attr(data-name) ": ";color:var(--soft)}
}
@media print{.block,tr{break-inside:avoid}.scroll{overflow:visible!important;max-height:none!important}}
"""
