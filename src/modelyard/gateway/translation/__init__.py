"""The translation lanes: LibreTranslate's API and our fields beside it, from a request to its answer.

`lane` serves the paths, `request` reads what is asked for, `pieces` cuts it into text, `translating` finds
who translates that, `steps` has it done, `answer` puts it together.
"""
