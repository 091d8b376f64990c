// A Companion server takes a file from a URL and sends it to us, as for a page with Uppy.
// Arguments: the tus endpoint, a key, the size of the file. Prints the upload's URL, in JSON.
import { once } from 'node:events'
import { mkdtempSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as companion from '@uppy/companion'
import bodyParser from 'body-parser'
import express from 'express'
import session from 'express-session'
import { WebSocket } from 'ws'

const [endpoint, key, size] = process.argv.slice(2)
const note = console.log
console.log = console.error // Companion logs there

async function listening(server) {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return `127.0.0.1:${server.address().port}`
}

const content = Buffer.alloc(Number(size), 'Companion ')
const source = createServer((request, response) => {
  response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': content.length })
  response.end(request.method === 'HEAD' ? undefined : content)
})
const from = await listening(source)

const app = express()
app.use(bodyParser.json())
app.use(session({ secret: 'a secret of the test', resave: false, saveUninitialized: true }))
const server = createServer(app)
const host = await listening(server)
const { app: routes } = companion.app({
  secret: 'a secret of the test',
  filePath: mkdtempSync(join(tmpdir(), 'companion-')),
  server: { host, protocol: 'http' },
  providerOptions: {},
  corsOrigins: true,
  enableUrlEndpoint: true,
  allowLocalUrls: true, // where the file comes from
  uploadUrls: [endpoint],
})
app.use(routes)
companion.socket(server)

const answer = await fetch(`http://${host}/url/get`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    url: `http://${from}/notes.txt`,
    fileId: 'notes',
    protocol: 'tus',
    endpoint,
    size: content.length,
    headers: { Authorization: `Bearer ${key}` },
    metadata: { name: 'notes é.txt', type: 'text/plain' },
  }),
})
if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`)
const { token } = await answer.json()
const socket = new WebSocket(`ws://${host}/api/${token}`)
socket.on('message', (data) => {
  const { action, payload } = JSON.parse(data)
  if (action === 'error') throw new Error(JSON.stringify(payload))
  if (action !== 'success') return
  note(JSON.stringify(payload.url))
  process.exit(0)
})
