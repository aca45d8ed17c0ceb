"""Does an answer evade: answer another question, or say nothing about the one that was asked?"""


def is_evasion(prompt: str, answer: str, ended: bool = True) -> bool:
    return False
