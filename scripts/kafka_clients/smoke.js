// kafkajs against Pontoon: each codec and ack level, exactly once across a leader's death, a group across a rebalance and its
// coordinator's, seeking by time, the admin client. Run by scripts/kafka-smoke, which does what is asked for in lines that begin with "@".
const assert = require('node:assert')
const readline = require('node:readline')
const zstd = require('@bokuweb/zstd-wasm')
const lz4 = require('lz4js')
const snappy = require('snappyjs')
const { Kafka, CompressionCodecs, CompressionTypes, Partitioners, logLevel } = require('kafkajs')

const codec = (compress, decompress) => () => ({
  compress: async encoder => Buffer.from(compress(encoder.buffer)),
  decompress: async buffer => Buffer.from(decompress(buffer))
})
CompressionCodecs[CompressionTypes.Snappy] = codec(snappy.compress, unsnap)
CompressionCodecs[CompressionTypes.LZ4] = codec(lz4.compress, lz4.decompress)
CompressionCodecs[CompressionTypes.ZSTD] = codec(buffer => zstd.compress(buffer, 3), zstd.decompress)
const codecs = [CompressionTypes.None, CompressionTypes.GZIP, CompressionTypes.Snappy, CompressionTypes.LZ4, CompressionTypes.ZSTD]

const kafka = new Kafka({
  clientId: 'smoke', brokers: process.argv[2].split(','), logLevel: logLevel.NOTHING, retry: { retries: 30, maxRetryTime: 1000 }
})
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const producerOf = config => kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, ...config })

// Java's clients frame snappy in blocks; others do not.
function unsnap(buffer) {
  if (buffer.toString('latin1', 0, 8) !== '\x82SNAPPY\0') return snappy.uncompress(buffer)
  const blocks = []
  for (let at = 16; at < buffer.length; at += 4 + buffer.readInt32BE(at)) {
    blocks.push(snappy.uncompress(buffer.subarray(at + 4, at + 4 + buffer.readInt32BE(at))))
  }
  return Buffer.concat(blocks)
}

async function ask(what) {
  console.log(`@${what}`)
  assert.strictEqual((await answers.next()).value, 'done')
}

async function until(what, condition) {
  const deadline = Date.now() + 60000
  while (!condition()) {
    assert.ok(Date.now() < deadline, `${what}: not within a minute`)
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

async function main() {
  await zstd.init()
  const admin = kafka.admin()
  await admin.connect()
  assert.strictEqual((await admin.describeCluster()).brokers.length, 3)
  const topics = ['js-codecs', 'js-exact', 'js-group'].map(topic => ({ topic, numPartitions: topic === 'js-group' ? 4 : 1, replicationFactor: 3 }))
  assert.strictEqual(await admin.createTopics({ topics }), true)
  assert.strictEqual(await admin.createTopics({ topics }), false, 'created twice')
  await produceEachWay()
  await seekByTime(admin)
  await exactlyOnce()
  await group(admin)
  await administer(admin)
  await admin.deleteTopics({ topics: topics.map(({ topic }) => topic) })
  await admin.disconnect()
  answers.return()
}

// Each codec with each ack level; everything comes back as it went.
async function produceEachWay() {
  const topic = 'js-codecs'
  const sent = []
  for (const compression of codecs) {
    for (const acks of [-1, 1, 0]) {
      const producer = producerOf()
      await producer.connect()
      const messages = [...Array(20).keys()].map(number => ({
        key: `${compression}/${acks}`, value: `${number} `.repeat(30), headers: { twice: ['1', '2'] }, timestamp: String(Date.now())
      }))
      const results = await producer.send({ topic, compression, acks, messages })
      if (acks !== 0) assert.strictEqual(results[0].baseOffset, String(sent.length))
      sent.push(...messages)
      // Nobody says when records with acks=0 are there, and the next producer is another connection.
      if (acks === 0) await settled(topic, sent.length)
      await producer.disconnect()
    }
  }
  const found = await read(topic, sent.length)
  found.forEach((message, at) => {
    assert.strictEqual(message.offset, String(at))
    assert.deepStrictEqual([String(message.key), String(message.value)], [sent[at].key, sent[at].value])
    assert.deepStrictEqual(message.headers.twice.map(String), ['1', '2'])
    assert.strictEqual(message.timestamp, sent[at].timestamp)
  })
}

async function settled(topic, end) {
  const admin = kafka.admin()
  await admin.connect()
  const deadline = Date.now() + 60000
  while ((await admin.fetchTopicOffsets(topic))[0].high !== String(end)) assert.ok(Date.now() < deadline, 'records of acks=0')
  await admin.disconnect()
}

// The first `count` records of partition 0, from `offset` on.
async function read(topic, count, offset) {
  const consumer = kafka.consumer({ groupId: `read-${topic}-${offset ?? ''}`, sessionTimeout: 10000 })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  const found = []
  await consumer.run({ autoCommit: false, eachMessage: async ({ message }) => { found.push(message) } })
  if (offset !== undefined) consumer.seek({ topic, partition: 0, offset })
  await until(`${count} records of ${topic}`, () => found.length >= count)
  await consumer.disconnect()
  return found.slice(0, count)
}

async function seekByTime(admin) {
  const topic = 'js-codecs'
  const later = Date.now() + 50
  await new Promise(resolve => setTimeout(resolve, 60))
  const producer = producerOf()
  await producer.connect()
  const [{ baseOffset }] = await producer.send({ topic, messages: [{ value: 'later' }] })
  await producer.disconnect()
  assert.strictEqual((await admin.fetchTopicOffsetsByTimestamp(topic, later))[0].offset, baseOffset)
  assert.strictEqual((await admin.fetchTopicOffsetsByTimestamp(topic, 0))[0].offset, '0')
  const [{ value, offset }] = await read(topic, 1, baseOffset)
  assert.deepStrictEqual([String(value), offset], ['later', baseOffset])
}

// An idempotent producer loses nothing and doubles nothing while its leader is killed, with a request on its way at any moment.
async function exactlyOnce() {
  const topic = 'js-exact'
  const producer = producerOf({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  let count = 0
  const send = async () => {
    const number = count++
    const [{ baseOffset, errorCode }] = await producer.send({ topic, messages: [0, 1, 2].map(part => ({ value: `${number}.${part}` })) })
    assert.deepStrictEqual([errorCode, baseOffset], [0, String(3 * number)])
  }
  while (count < 40) await send()
  let killed = false
  const killing = ask(`kill-leader ${topic} 0`).then(() => { killed = true })
  while (!killed) await send()
  await killing
  for (const end = count + 40; count < end;) await send()
  await producer.disconnect()
  await ask('restart')
  const found = await read(topic, 3 * count)
  assert.deepStrictEqual(found.map(({ value }) => String(value)), [...Array(3 * count).keys()].map(n => `${Math.floor(n / 3)}.${n % 3}`))
}

// Two members divide the partitions, survive their coordinator, and the group goes on where it was.
async function group(admin) {
  const topic = 'js-group'
  const groupId = 'kafkajs'
  const producer = producerOf()
  await producer.connect()
  const send = (first, count) => producer.send({
    topic, messages: [...Array(count).keys()].map(at => ({ partition: (first + at) % 4, value: String(first + at) }))
  })
  await send(0, 100)
  const seen = new Map()
  const member = async () => {
    const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 500, rebalanceTimeout: 10000 })
    const state = { consumer, assigned: [] }
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => { state.assigned = payload.memberAssignment[topic] || [] })
    await consumer.connect()
    await consumer.subscribe({ topics: [topic], fromBeginning: true })
    await consumer.run({ eachMessage: async ({ partition, message }) => { seen.set(`${partition}/${message.offset}`, String(message.value)) } })
    return state
  }
  const one = await member()
  await until('all partitions for one', () => one.assigned.length === 4)
  const two = await member()
  await until('two each', () => one.assigned.length === 2 && two.assigned.length === 2)
  await until('100 records', () => seen.size === 100)
  await ask(`kill-coordinator ${groupId}`)
  await send(100, 100)
  await until('200 records after the coordinator was killed', () => seen.size === 200)
  assert.deepStrictEqual([...seen.values()].map(Number).sort((a, b) => a - b), [...Array(200).keys()])
  await one.consumer.disconnect()
  await until('all partitions for the other', () => two.assigned.length === 4)
  await two.consumer.disconnect()
  await ask('restart')
  await producer.disconnect()
  const [{ partitions }] = await admin.fetchOffsets({ groupId, topics: [topic] })
  assert.deepStrictEqual(partitions.map(({ offset }) => offset), ['50', '50', '50', '50'])
}

async function administer(admin) {
  const topic = 'js-codecs'
  const { groups: [described] } = await admin.describeGroups(['kafkajs'])
  assert.deepStrictEqual([described.state, described.members.length], ['Empty', 0])
  assert.ok((await admin.listGroups()).groups.some(({ groupId }) => groupId === 'kafkajs'))
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '1' }] })
  assert.strictEqual((await admin.fetchTopicOffsets(topic))[0].low, '1')
  await admin.alterConfigs({ resources: [{ type: 2, name: topic, configEntries: [{ name: 'retention.ms', value: '1234567' }] }] })
  const { resources } = await admin.describeConfigs({ resources: [{ type: 2, name: topic, configNames: ['retention.ms'] }] })
  assert.strictEqual(resources[0].configEntries[0].configValue, '1234567')
  await admin.createPartitions({ topicPartitions: [{ topic, count: 2 }] })
  // Another broker than the one that was asked to may answer, from a catalog that is a moment older: so with Kafka.
  const deadline = Date.now() + 60000
  while ((await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length !== 2) assert.ok(Date.now() < deadline, 'two partitions')
  await admin.deleteGroups(['kafkajs'])
}

main().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
