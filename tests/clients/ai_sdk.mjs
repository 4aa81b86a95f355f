// One plain and one streamed call of the Vercel AI SDK; prints what was said as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Modules are looked up in the folder that the test names, not beside this file.
const from = createRequire(`${process.env.AI_SDK}/package.json`);
const load = (name) => import(pathToFileURL(from.resolve(name)).href);
const { generateText, streamText } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");

const openai = createOpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });
const found = {};
for (const [name, model] of [["chat", openai.chat("default")], ["responses", openai.responses("default")]]) {
  const options = { model, maxRetries: 0 };
  const plain = await generateText({ ...options, prompt: `nonce:ai-${name}-plain` });
  const stream = streamText({ ...options, prompt: `nonce:ai-${name}-streamed` });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  const tokens = plain.usage.totalTokens;
  found[name] = { plain: plain.text, streamed: pieces.join(""), pieces: pieces.length, tokens };
}
console.log(JSON.stringify(found));
