// Judges a document by the JSON schema of AsyncAPI 3, and frames by the schemas of the document.
// Takes {document, frames: [{message, frame}]} from standard input; prints what is wrong with them.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const Ajv = require("ajv").default;
const addFormats = require("ajv-formats").default;
const schema = require("@asyncapi/specs/schemas/3.0.0-without-$id.json");

const { document, frames } = JSON.parse(readFileSync(0, "utf8"));
const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);

const wrong = [];
const judge = (what, validate, value) => {
  if (!validate(value)) wrong.push({ what, errors: validate.errors.slice(0, 5) });
};

judge("the document", ajv.compile(schema), document);
ajv.addSchema({ $id: "feed:", components: document.components });
for (const { message, frame } of frames) {
  const { $ref } = document.components.messages[message].payload;
  judge(frame, ajv.getSchema(`feed:${$ref}`) ?? ajv.compile({ $ref: `feed:${$ref}` }), frame);
}
console.log(JSON.stringify(wrong));
