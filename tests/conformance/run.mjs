// Runs a checkout of the suite of cache-tests.fyi against a cache, prints a line for each case, and writes the results
// in the form that the suite's own page shows: node run.mjs SUITE NODE_FETCH BASE_URL RESULTS_FILE
import { existsSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [suite, nodeFetch, base, file] = process.argv.slice(2)
const from = path => import(pathToFileURL(`${suite}/${path}`))

// What runs the cases has a folder of its own in newer checkouts.
const engine = existsSync(`${suite}/test-engine`) ? 'test-engine/' : ''
const { runTests, getResults } = await from(`${engine}client/runner.mjs`)
const suites = (await from('tests/index.mjs')).default
// The older release keeps this one apart.
const surrogate = await from('tests/surrogate-control.mjs').catch(() => undefined)
if (surrogate && !suites.some(({ id }) => id === surrogate.default.id)) suites.push(surrogate.default)

// The newest use Node's own client, and are not told of one.
const client = createRequire(import.meta.url)(nodeFetch)
const fetches = runTests.length > 3 ? [client.default ?? client] : []
await runTests(suites, ...fetches, false, base)

const results = getResults()
writeFileSync(file, JSON.stringify(results, null, 2))
for (const { id: suite, tests } of suites) {
  for (const { id, kind = 'required', browser_only: browserOnly } of tests) {
    if (browserOnly) continue
    const result = results[id]
    const told = result === true ? '' : [result].flat().join(': ').replaceAll(/\s+/g, ' ')
    console.log([suite, kind, id, result === true ? 'pass' : 'fail', told].join('\t'))
  }
}
// The client's connections would keep the process alive.
process.exit(0)
