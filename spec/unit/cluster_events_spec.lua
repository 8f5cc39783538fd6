local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local state = require "symphony.cluster.state"
local store = require "sym.store"

-- The same module as another manager has it.
package.loaded["symphony.cluster.events"] = nil
local elsewhere = require "symphony.cluster.events"
package.loaded["symphony.cluster.events"] = events

local NODE = { node_id = "0abcdefghijklmnopqrstuvabc", name = "w1", role = "worker" }

local function record(text, module)
  assert((module or events).record { kind = "node.updated", message = text })
end

local function messages(want)
  local out = {}
  for i, event in ipairs(assert(events.list(want or {}))) do out[i] = event.message end
  return out
end

local function cluster(fn)
  return fake.task(function()
    fake.make()
    for key in pairs(fake.kvs) do
      if key:find("^/event/") then fake.kvs[key] = nil end
    end
    fn()
  end)
end

describe("events", function()
  before_each(function() fake.reset() end)

  it("are written in the txn of what they tell of", cluster(function()
    fake.now = 1700000000.12345
    local txn = { compare = {}, ops = { state.put("/kv/a", "1") } }
    events.add(txn, { kind = "node.down", node = NODE, message = "gone", reason = "no answer", since = 5 })
    events.add(txn, { kind = "node.down", message = "again" })
    assert.equal("applied", state.submit(txn).status)
    local list = assert(events.list {})
    assert.same({ at = 1700000000.123, kind = "node.down", node_id = NODE.node_id, name = "w1", message = "gone",
      reason = "no answer", since = 5, id = list[1].id, revision = fake.revision }, list[1])
    assert.same({ "gone", "again" }, messages())
    assert.equal(list[1].revision, list[2].revision)
    assert.is_true(list[1].id < list[2].id)
  end))

  it("go out one by one in a burst without being in each other's way", cluster(function()
    local before, tries = fake.revision, 0
    fake.before_submit = function() tries = tries + 1 end
    local txns = {}
    for i = 1, 20 do
      txns[i] = { compare = {}, ops = {} }
      events.add(txns[i], { kind = "node.updated", message = tostring(i) })
      assert.is_true(#txns[i].ops <= 1 and #txns[i].compare == 1)
    end
    for i = 1, 20 do assert.equal("applied", state.submit(txns[i]).status) end
    assert.same({ before + 20, 20 }, { fake.revision, tries })
    assert.equal("20", messages()[20])
  end))

  it("of two managers do not overwrite each other, and stay in order", cluster(function()
    record "a"
    local txn = { compare = {}, ops = {} }
    events.add(txn, { kind = "node.updated", message = "mine" })
    record("theirs", elsewhere)
    assert.equal("conflict", state.submit(txn).status)
    record "b"
    record("c", elsewhere)
    record("d", elsewhere)
    record "e"
    assert.same({ "a", "theirs", "b", "c", "d", "e" }, messages())
    -- A new term: whatever was given out before and came to nothing is forgotten.
    for _ = 1, 50 do events.add({ compare = {}, ops = {} }, { kind = "node.updated" }) end
    fake.status.term = 2
    record "f"
    local list = events.list {}
    assert.equal(list[6].id + 1, list[7].id)
  end))

  it("are the last thousand, also behind txns that failed", cluster(function()
    for i = 1, 700 do record(tostring(i)) end
    -- Numbers that nobody has.
    for _ = 1, 5 do events.add({ compare = {}, ops = {} }, { kind = "node.updated", message = "lost" }) end
    for i = 701, 1720 do record(tostring(i)) end
    local list = events.list {}
    assert.is_true(#list <= 1000 and #list >= 990, #list)
    assert.equal("1720", list[#list].message)
    for i = 2, #list do assert.equal(tonumber(list[i - 1].message) + 1, tonumber(list[i].message)) end
    local size = #state.list_raw("/event/")
    record "one more"
    assert.is_true(#state.list_raw("/event/") <= size)
  end))

  it("let many be told in one txn", cluster(function()
    for i = 1, 1100 do record(tostring(i)) end
    local txn = { compare = {}, ops = {} }
    for _ = 1, 50 do events.add(txn, { kind = "node.down", message = "m" }) end
    assert.equal("applied", state.submit(txn).status)
    assert.equal(1000, #events.list {})
  end))

  it("hold no more text than fits, and no other bytes", cluster(function()
    record(("\u{e4}"):rep(600) .. "\255")
    local text = messages()[1]
    assert.is_true(#text <= 1002 and utf8.len(text) ~= nil)
    for _, kind in ipairs { "joined", "Node.joined", "", 7 } do
      assert.is_false(pcall(events.add, { compare = {}, ops = {} }, { kind = kind }))
    end
    assert.is_false(pcall(events.add, { compare = {}, ops = {} }, {}))
  end))

  it("say that they could not be written", cluster(function()
    fake.submit_error = { code = "no_quorum", message = "no" }
    local ok, err = events.record { kind = "node.updated" }
    assert.is_nil(ok)
    assert.equal("no_quorum", err.code)
  end))

  it("are found by time, kind, node, number and revision", cluster(function()
    for i, kind in ipairs { "node.joined", "node.down", "ca.rotated" } do
      fake.now = 1700000000 + i
      assert(events.record { kind = kind, node = i < 3 and NODE or nil, message = kind })
    end
    local first = events.list {}[1]
    for _, case in ipairs {
      { {}, "node.joined node.down ca.rotated" }, { { since = 1700000002 }, "node.down ca.rotated" },
      { { kind = "node" }, "node.joined node.down" }, { { kind = "node.down" }, "node.down" }, { { kind = "no" }, "" },
      { { node = "w1" }, "node.joined node.down" }, { { node = NODE.node_id:sub(1, 6) }, "node.joined node.down" },
      { { node = NODE.node_id:sub(1, 5) }, "" }, { { node = "new", node_id = NODE.node_id }, "node.joined node.down" },
      { { limit = 1 }, "ca.rotated" }, { { limit = 1, node = "w1" }, "node.down" }, { { limit = 0 }, "" },
      { { from = first.revision + 1 }, "node.down ca.rotated" },
    } do
      assert.equal(case[2], table.concat(messages(case[1]), " "), json.encode(case[1]))
    end
    fake.apply { ops = { state.put("/event/000000000009", "nonsense") } }
    local list, err = events.list {}
    assert.is_nil(list)
    assert.equal("corrupt", err.code)
  end))
end)

describe("who follows events", function()
  before_each(function() fake.reset() end)

  it("gets those that there are, then each as it comes", cluster(function()
    for i = 1, 3 do record(tostring(i)) end
    local f <close> = events.follow { limit = 2 }
    assert.equal("2", f:next(0).message)
    assert.equal("3", f:next(0).message)
    assert.is_nil(f:next(1))
    async.spawn(function() record "4" end)
    assert.equal("4", f:next(1000).message)
    local new <close> = events.follow { limit = 0, kind = "node.down" }
    assert.is_nil(new:next(1))
    record "5"
    assert(events.record { kind = "node.down", message = "6" })
    assert.equal("6", new:next(1000).message)
    assert.equal("5", f:next(0).message)
  end))

  it("misses nothing when history is gone, and gets nothing twice", cluster(function()
    local open, callbacks = store.watch, {}
    finally(function() store.watch = open end)
    store.watch = function(prefix, revision, fn)
      callbacks[#callbacks + 1] = fn
      local w = open(prefix, revision, fn)
      if #callbacks == 1 then w.close() end -- it brings nothing
      return w
    end
    record "old"
    local f <close> = events.follow { limit = 0 }
    assert.is_nil(f:next(1))
    record "1"
    record "2"
    local kv = state.list_raw("/event/")[2]
    callbacks[1](nil, { { key = kv.key, value = kv.value, revision = kv.mod_revision } })
    assert.equal("1", f:next(0).message)
    callbacks[1](errors.new("compacted", "gone"))
    assert.equal("2", f:next(0).message)
    assert.is_nil(f:next(1))
    assert.equal(2, #callbacks)
    record "3"
    assert.equal("3", f:next(0).message)
    -- A reader that sleeps through more than is kept for it.
    local long = ("r"):rep(1000)
    for i = 4, 900 do assert(events.record { kind = "node.updated", message = tostring(i), reason = long }) end
    for i = 4, 900 do assert.equal(tostring(i), f:next(0).message) end
    assert.is_true(#callbacks > 2)
  end))

  it("is told why it is over", cluster(function()
    local before = fake.watching()
    do
      local f <close> = events.follow {}
      while f:next(1) do end
      f.feed:add(errors.new("closed", "the node stops"))
      local event, err = f:next(1)
      assert.is_nil(event)
      assert.equal("closed", err.code)
    end
    assert.equal(before, fake.watching())
  end))
end)
