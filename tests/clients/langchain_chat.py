"""One plain and one streamed call of LangChain's `ChatOpenAI`; prints what was said as JSON. Runs in its own Python."""

# pyright: basic, reportMissingImports=false
# LangChain is not installed where the types are checked.

import json
import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="default", base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
plain = model.invoke([("system", "Be brief."), ("user", "nonce:langchain-plain")])
pieces = [piece.content for piece in model.stream("nonce:langchain-streamed") if piece.content]
tokens = plain.usage_metadata["total_tokens"]
print(json.dumps({"plain": plain.content, "streamed": "".join(pieces), "pieces": len(pieces), "tokens": tokens}))
