// Sends as many files at once as the third argument says, with tus-js-client's defaults, to the endpoint that is the
// first argument, with the key that is the second. Prints the URLs, in JSON.
import { Upload } from 'tus-js-client'

const [endpoint, key, count] = process.argv.slice(2)

const uploaded = (number) =>
  new Promise((settle, fail) => {
    const upload = new Upload(Buffer.alloc(300_000, number), {
      endpoint,
      headers: { Authorization: `Bearer ${key}` },
      metadata: { filename: `${number}.bin` },
      onSuccess: () => settle(upload.url),
      onError: fail,
    })
    upload.start()
  })

console.log(JSON.stringify(await Promise.all([...Array(Number(count)).keys()].map(uploaded))))
