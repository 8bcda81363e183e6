"""Speak one turn with LangChain, whose messages a file keeps. The requests name no conversation.

Arguments: the server's URL, the key, the model and the file. The words come on stdin.
"""

import json
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage, messages_from_dict, messages_to_dict
from langchain_openai import ChatOpenAI

url, key, model, path = sys.argv[1:]
history = Path(path)
messages = messages_from_dict(json.loads(history.read_text())) if history.exists() else []
messages.append(HumanMessage(sys.stdin.read()))
reply = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=64, temperature=0).invoke(messages)
history.write_text(json.dumps(messages_to_dict([*messages, reply])))
usage = reply.usage_metadata or {}
cached = usage.get("input_token_details", {}).get("cache_read", 0)
print(json.dumps({"text": reply.content, "cached": cached, "prompt": usage.get("input_tokens", 0)}))
