// llama.cpp's answers about GGUF files: node ask.mjs QUESTIONS ANSWERS (two JSON files).
//
// QUESTIONS: a list of {file, texts: [string], chats: [[message]], prompts: [[id]]}.
// ANSWERS: for each {texts: [[id]], chats: [[id]], logprobs: [[[number]]], adds_bos, ends: [id]},
//   where chats are written by the file's own template, and logprobs are those of the whole
//   vocabulary after every token of a prompt; or {error: string} where the file cannot be loaded.
import fs from "node:fs";
import {createRequire} from "node:module";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const require = createRequire(createRequire(import.meta.url).resolve("node-llama-cpp"));
const {Template} = require("@huggingface/jinja");
const [questions, answers] = process.argv.slice(2);

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: 1,
    logLevel: LlamaLogLevel.error
});

async function logprobs(sequence, prompt, vocabulary) {
    await sequence.clearHistory();
    const options = {temperature: 1, topK: 0, topP: 1, minP: 0, seed: 0};
    const wanted = prompt.map((token) => [token, {generateNext: {probabilities: true, options}}]);
    const found = await sequence.controlledEvaluate(wanted);
    return found.map(({next}) => {
        const row = new Array(vocabulary).fill(-1e9);
        for (const [token, probability] of next.probabilities)
            row[token] = Math.log(Math.max(probability, 1e-30));
        return row;
    });
}

async function ask({file, texts = [], chats = [], prompts = []}) {
    const vocabOnly = prompts.length === 0;
    const model = await llama.loadModel({modelPath: file, vocabOnly, useMmap: false});
    const {tokenizer} = model.fileInfo.metadata;
    const words = tokenizer.ggml.tokens;
    const template = new Template(tokenizer.chat_template);
    const ids = (text) => [...model.tokenize(text, true)].map(Number);
    const written = chats.map((messages) => template.render({
        messages, add_generation_prompt: true,
        bos_token: words[tokenizer.ggml.bos_token_id], eos_token: words[tokenizer.ggml.eos_token_id]
    }));
    const found = {
        texts: texts.map(ids),
        chats: written.map(ids),
        adds_bos: model.tokens.shouldPrependBosToken,
        ends: words.map((_, id) => id).filter((id) => model.isEogToken(id)),
        logprobs: []
    };
    if (!vocabOnly) {
        const context = await model.createContext({
            contextSize: 256, threads: 1, flashAttention: false,
            experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
        });
        const sequence = context.getSequence();
        for (const prompt of prompts)
            found.logprobs.push(await logprobs(sequence, prompt, words.length));
        await context.dispose();
    }
    await model.dispose();
    return found;
}

const found = [];
for (const question of JSON.parse(fs.readFileSync(questions, "utf8"))) {
    try {
        found.push(await ask(question));
    } catch (error) {
        found.push({error: String(error?.message ?? error)});
    }
}
fs.writeFileSync(answers, JSON.stringify(found));
process.exit(0);
