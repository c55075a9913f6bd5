"""The explanation after the grade: how it is made for training and how it is checked.

Four lines follow the grade token, and each claims something that a rule can verify: `intent` lists
the query's content words; `match` lists those that are in the document (inflected or not), `gaps`
those that are not, or `none`; `verdict` names the grade. See `recipe.grounding`.
"""

from mini.grounding import RULE, SECTIONS, VERDICTS  # noqa: F401

LISTS = RULE.lists
write, parse, check = RULE.write, RULE.parse, RULE.check
