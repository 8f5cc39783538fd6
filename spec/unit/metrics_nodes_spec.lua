local fake = require "spec.unit.cluster_fake"
local json = require "symphony.json"
local metrics = require "symphony.metrics"
local store = require "sym.store"
local text = require "symphony.metrics.text"

store.stats = function() return {} end
local nodes = require "symphony.metrics.nodes"

describe("the metrics of nodes", function()
  local reads, real_list, real_watch, failing

  before_each(function()
    fake.reset()
    nodes.reset()
    reads, failing = 0, {}
    real_list, real_watch = store.list, store.watch
    store.list = function(...)
      reads = reads + 1
      return real_list(...)
    end
    store.watch = function(prefix, revision, fn)
      failing[prefix] = fn
      return real_watch(prefix, revision, fn)
    end
  end)
  after_each(function()
    store.list, store.watch = real_list, real_watch
    nodes.reset()
  end)

  local function put(...)
    local ops = {}
    for _, pair in ipairs { ... } do
      ops[#ops + 1] = { put = pair[1], value = type(pair[2]) == "table" and json.encode(pair[2]) or pair[2] }
    end
    fake.apply { ops = ops }
  end

  local function node(id, role, more)
    local record = { node_id = id, role = role, name = "name-" .. id, availability = "active" }
    for k, v in pairs(more or {}) do record[k] = v end
    return { "/node/" .. id, record }
  end

  local function status(id, what, since)
    return { "/status/node/" .. id, { status = what, since = since or 1 } }
  end

  -- Samples as "labels value", by the family's name.
  local function scrape()
    local found
    fake.run(function()
      found = {}
      for _, family in ipairs(assert(nodes.families())) do
        local all = {}
        for _, sample in ipairs(family.samples) do
          all[#all + 1] = text.labels(sample.labels) .. " " .. text.number(sample.value)
        end
        found[family.name] = all
      end
    end)
    return found
  end

  it("count by role and status, and follow what changes without reading again", function()
    put(node("a", "manager", { raft_node_id = 7 }), node("b", "worker"),
      node("c", "worker", { availability = "drain" }), status("a", "ready"), status("c", "down", 1234))
    local found = scrape()
    assert.same({ 'role="manager",status="down" 0', 'role="manager",status="joining" 0',
      'role="manager",status="left" 0', 'role="manager",status="ready" 1', 'role="worker",status="down" 1',
      'role="worker",status="joining" 1', 'role="worker",status="left" 0', 'role="worker",status="ready" 0' },
      found.symphony_nodes)
    assert.same({ 'availability="active" 2', 'availability="drain" 1' }, found.symphony_nodes_availability)
    assert.same({ 'name="name-c",node_id="c",role="worker" 1234' }, found.symphony_node_down_since_seconds)
    assert.equal("name-a", nodes.name(7))
    local before = reads
    put(status("b", "ready"), status("c", "ready"))
    put(node("c", "worker"))
    found = scrape()
    assert.equal(before, reads)
    assert.same({ 'availability="active" 3', 'availability="drain" 0' }, found.symphony_nodes_availability)
    assert.equal('role="worker",status="ready" 2', found.symphony_nodes[8])
    assert.is_nil(found.symphony_node_down_since_seconds)
  end)

  it("forget a node that is removed, in whatever order its keys go", function()
    put(node("a", "manager", { raft_node_id = 7 }), node("b", "worker"), status("a", "ready"), status("b", "down"))
    scrape()
    fake.apply { ops = { { delete = "/node/a" }, { delete = "/status/node/a" } } }
    fake.apply { ops = { { delete = "/status/node/b" } } }
    assert.equal('role="worker",status="joining" 1', scrape().symphony_nodes[6])
    fake.apply { ops = { { delete = "/node/b" } } }
    for _, line in ipairs(scrape().symphony_nodes) do assert.truthy(line:find(" 0$"), line) end
    assert.is_nil(nodes.name(7))
    put(status("z", "down")) -- of a node that is none
    assert.is_nil(scrape().symphony_node_down_since_seconds)
  end)

  it("go on with what they had when a record cannot be read", function()
    put(node("a", "worker"), status("a", "ready"))
    scrape()
    put({ "/node/a", "no JSON" }, { "/status/node/a", "7" })
    assert.equal('role="worker",status="ready" 1', scrape().symphony_nodes[4])
  end)

  it("read everything again when the history is gone, and close their watches", function()
    put(node("a", "worker"))
    scrape()
    assert.equal(2, fake.watching())
    fake.kvs["/node/b"] = { key = "/node/b", value = json.encode(node("b", "worker")[2]), create_revision = 1,
      mod_revision = 1 } -- came with a snapshot: no event
    failing["/node/"]({ code = "compacted", message = "gone" })
    assert.equal(0, fake.watching())
    assert.equal('role="worker",status="joining" 2', scrape().symphony_nodes[2])
    assert.equal(2, fake.watching())
  end)

  it("are left out, and read again by the next, when the history goes while they are read", function()
    put(node("a", "worker"), node("b", "worker"), status("a", "ready"))
    local list = store.list
    store.list = function(prefix, opts)
      local page, more = list(prefix, opts)
      if prefix == "/node/" then failing["/node/"]({ code = "compacted", message = "gone" }) end
      return page, more
    end
    fake.run(function() assert.is_nil(nodes.families()) end)
    assert.equal(0, fake.watching())
    store.list = list
    assert.same({ 'role="worker",status="down" 0', 'role="worker",status="joining" 1',
      'role="worker",status="left" 0', 'role="worker",status="ready" 1' }, scrape().symphony_nodes)
  end)

  it("read thousands in pages, and show only some of those that are down", function()
    for i = 1, 1000 do
      local id = ("n%04d"):format(i)
      fake.kvs["/node/" .. id] = { key = "/node/" .. id, value = json.encode(node(id, "worker")[2]) }
      fake.kvs["/status/node/" .. id] = { key = "/status/node/" .. id, value = json.encode(status(id, "down")[2]) }
    end
    local found = scrape()
    assert.equal('role="worker",status="down" 1000', found.symphony_nodes[1])
    assert.equal(100, #found.symphony_node_down_since_seconds)
    assert.is_true(reads >= 8)
  end)

  it("are none where there is no state", function()
    local real = store.stats
    store.stats = function() return nil, { code = "closed", message = "not started" } end
    fake.run(function() assert.is_nil(nodes.families()) end)
    store.stats = real
    assert.is_table(metrics)
  end)
end)
