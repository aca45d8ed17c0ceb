"""What a model thinks aloud, told apart from what it answers.

Knows the tags of the common reasoning models. Does not know models or labels.
"""

import re

TAGS = ("<think>", "<thinking>", "<thought>", "<reasoning>", "[THINK]")  # closed with a slash
# gpt-oss (the harmony format) names the channel of every message instead
_MESSAGE = re.compile(r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?=<\||\Z)", re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """Reasoning and answer, both stripped.

    Every closed block is reasoning, wherever it stands. So is what stands before a closing tag
    that nothing opened (the prompt did), and all of a text that begins with a block which never
    closes: its answer is empty.

    Returns:
        (reasoning, answer); the reasoning of several blocks is joined by empty lines.
    """
    thoughts: list[str] = []
    if "<|channel|>" in text:
        messages = _MESSAGE.findall(text)
        thoughts = [body for channel, body in messages if channel == "analysis"]
        text = "\n\n".join(body.strip() for channel, body in messages if channel != "analysis")
    for opening in TAGS:
        closing = f"{opening[0]}/{opening[1:]}"
        if closing in text:
            *closed, text = text.split(closing)
            rest = ""
            for piece in closed:
                outside, opened, inside = piece.partition(opening)
                # without an opening tag, what was taken for an answer so far was thought too
                thoughts.append(inside if opened else rest + outside)
                rest = rest + outside if opened else ""
            text = rest + text
        if text.lstrip().startswith(opening):
            thoughts.append(text.replace(opening, "", 1))
            text = ""
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts))), text.strip()
