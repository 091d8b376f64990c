// Drives tus-js-client as a job says, in JSON: the first argument. Prints what came of it, in JSON.
//
// {endpoint, key, file, storage, how: "send" | "abort" | "resume" | "terminate", options}
// `options` go to the client as they are; with `stream` the file is read as it is sent.
import { createReadStream, readFileSync } from 'node:fs'
import { PassThrough } from 'node:stream'
import { FileUrlStorage, Upload } from 'tus-js-client'

const job = JSON.parse(process.argv[2])
const source = job.stream
  ? createReadStream(job.file).pipe(new PassThrough()) // of a file the client would know the size
  : readFileSync(job.file)

function begin(settle, fail) {
  const upload = new Upload(source, {
    endpoint: job.endpoint,
    urlStorage: job.storage ? new FileUrlStorage(job.storage) : undefined,
    storeFingerprintForResuming: Boolean(job.storage),
    onSuccess: () => settle(upload),
    onError: fail,
    onChunkComplete: (size, accepted) => {
      if (job.how === 'abort' && accepted > 0) upload.abort().then(() => settle(upload), fail)
    },
    ...job.options,
    headers: { Authorization: `Bearer ${job.key}`, ...job.options?.headers },
  })
  return upload
}

async function run() {
  let resumed = false
  const upload = await new Promise((settle, fail) => {
    const upload = begin(settle, fail)
    if (job.how !== 'resume') return upload.start()
    return upload.findPreviousUploads().then(([previous]) => {
      resumed = Boolean(previous)
      if (previous) upload.resumeFromPreviousUpload(previous)
      upload.start()
    }, fail)
  })
  if (job.how === 'terminate') await upload.abort(true)
  return { url: upload.url, resumed }
}

console.log(JSON.stringify(await run()))
