// kafkajs against Pontoon: produce idempotently, consume as a group, administer. Run by scripts/kafka-smoke.
const assert = require('node:assert')
const { Kafka, CompressionTypes, logLevel } = require('kafkajs')

const topic = 'from-kafkajs'
const kafka = new Kafka({ clientId: 'smoke', brokers: process.argv[2].split(','), logLevel: logLevel.NOTHING })

async function main() {
  const admin = kafka.admin()
  await admin.connect()
  assert.strictEqual((await admin.describeCluster()).brokers.length, 3)
  assert.strictEqual(await admin.createTopics({ topics: [{ topic, numPartitions: 3, replicationFactor: 3 }] }), true)
  const sent = await produce()
  const received = await consume(sent.size)
  assert.deepStrictEqual(received, sent)
  const [{ partitions }] = await admin.fetchOffsets({ groupId: 'kafkajs', topics: [topic] })
  assert.strictEqual(partitions.reduce((sum, { offset }) => sum + Number(offset), 0), sent.size)
  assert.ok((await admin.listGroups()).groups.some(({ groupId }) => groupId === 'kafkajs'))
  const early = await admin.fetchTopicOffsetsByTimestamp(topic, 0)
  assert.ok(early.every(({ offset }) => offset === '0'))
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '1' }] })
  const ends = await admin.fetchTopicOffsets(topic)
  assert.strictEqual(ends.find(({ partition }) => partition === 0).low, '1')
  await admin.alterConfigs({
    resources: [{ type: 2, name: topic, configEntries: [{ name: 'retention.ms', value: '1234567' }] }]
  })
  const { resources } = await admin.describeConfigs({ resources: [{ type: 2, name: topic, configNames: ['retention.ms'] }] })
  assert.strictEqual(resources[0].configEntries[0].configValue, '1234567')
  await admin.deleteGroups(['kafkajs'])
  await admin.deleteTopics({ topics: [topic] })
  await admin.disconnect()
}

async function produce() {
  const producer = kafka.producer({ idempotent: true })
  await producer.connect()
  const sent = new Map()
  for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
    const messages = [...Array(30).keys()].map(number => ({
      key: `${compression}-${number}`, value: `value ${number}`, headers: { twice: ['1', '2'] }
    }))
    const results = await producer.send({ topic, compression, messages })
    assert.ok(results.every(({ errorCode }) => errorCode === 0))
    messages.forEach(({ key, value }) => sent.set(key, value))
  }
  await producer.disconnect()
  return sent
}

async function consume(count) {
  const consumer = kafka.consumer({ groupId: 'kafkajs', sessionTimeout: 10000 })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  const received = new Map()
  await new Promise((resolve, reject) => {
    const eachMessage = async ({ message }) => {
      assert.deepStrictEqual(message.headers.twice.map(String), ['1', '2'])
      received.set(String(message.key), String(message.value))
      if (received.size === count) resolve()
    }
    consumer.run({ eachMessage }).catch(reject)
  })
  await consumer.disconnect()
  return new Map([...received].sort((a, b) => a[0].localeCompare(b[0], 'en', { numeric: true })))
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
