"""A recogniser in its own process: it reads pieces of audio, and prints a line for each phrase.

Each piece is its length in bytes, in four of them, and 16-bit PCM. A silent piece ends a phrase.
"""

import sys

from integration.speech import SILENCE, recognise


def main() -> None:
    """Recognise speech until standard input is closed."""
    recognise(SILENCE)  # loads the model
    print("ready", flush=True)
    audio = b""
    while head := sys.stdin.buffer.read(4):
        piece = sys.stdin.buffer.read(int.from_bytes(head, "big"))
        audio += piece
        if not any(piece):
            print(recognise(audio), flush=True)
            audio = b""


if __name__ == "__main__":
    main()
