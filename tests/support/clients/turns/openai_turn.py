"""Speak one turn with the OpenAI SDK. It keeps no history, so a file has it.

Arguments: the server's URL, the key, the model, the file and the session's id. The words come on stdin.
"""

import json
import sys
from pathlib import Path

from openai import OpenAI

url, key, model, path, session = sys.argv[1:]
history = Path(path)
messages = json.loads(history.read_text()) if history.exists() else []
messages.append({"role": "user", "content": sys.stdin.read()})
client = OpenAI(base_url=f"{url}/v1", api_key=key, default_headers={"X-Session-ID": session})
reply = client.chat.completions.create(model=model, messages=messages, max_tokens=64, temperature=0)
text, usage = reply.choices[0].message.content, reply.usage
history.write_text(json.dumps([*messages, {"role": "assistant", "content": text}]))
cached = usage.prompt_tokens_details.cached_tokens if usage and usage.prompt_tokens_details else 0
print(json.dumps({"text": text, "cached": cached or 0, "prompt": usage.prompt_tokens if usage else 0}))
