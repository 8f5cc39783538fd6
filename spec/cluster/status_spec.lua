-- What the leader calls nodes, as processes: killed, stopped, restarted, with a folder that was put back; and the
-- gossip key that is changed under way.
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

-- Kinds of the events about node @id.
local function events_of(m, id)
  local kinds = {}
  for _, event in ipairs(m:json("events")) do
    if event.node_id == id then kinds[#kinds + 1] = event.kind end
  end
  return kinds
end

local function count(list, what)
  local n = 0
  for _, kind in ipairs(list) do n = n + (kind == what and 1 or 0) end
  return n
end

describe("the status of a node", function()
  it("is down when it was killed or hangs, says why, and is ready again by itself", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(4, m)
    t:wait_status(w, "ready", m)
    w[1]:crash()
    t:wait_status({ w[1] }, "down", m)
    local shown = m:json("node", "inspect", w[1].node_id)[1]
    assert.truthy(shown.reason:find("gossip", 1, true) and shown.reason:find("probe", 1, true), shown.reason)
    w[1]:start()
    t:wait_status({ w[1] }, "ready", m)
    assert.equal(1, count(events_of(m, w[1].node_id), "node.down"))
    w[2]:kill("sigstop")
    t:wait_status({ w[2] }, "down", m)
    w[2]:kill("sigcont")
    t:wait_status(w, "ready", m)
    for _, row in ipairs { w[3], w[4] } do assert.equal(0, count(events_of(m, row.node_id), "node.down")) end
    -- Stopped in order, it has left.
    assert.equal(0, (w[3]:stop()))
    t:wait_status({ w[3] }, "left", m)
    w[3]:start()
    t:wait_status(w, "ready", m)
    assert.equal(0, count(events_of(m, w[3].node_id), "node.down"))
  end))

  it("is left for a manager that was stopped in order, also one that leads", cluster.scenario(function(t)
    t:cluster(3)
    for _ = 1, 2 do
      local leader, others = t:leader()
      for _, gone in ipairs { others[1], leader } do
        local witness = others[2]
        gone.node_id = witness:member(gone).node_id
        t:wait_status({ gone }, "ready", witness)
        assert.equal(0, (gone:stop()))
        t:wait_status({ gone }, "left", witness)
        gone:start()
        t:wait_status({ gone }, "ready", witness)
        assert.equal(0, count(events_of(witness, gone.node_id), "node.down"))
      end
    end
  end))

  it("stays what it is while all managers are restarted", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(3, m[1])
    t:wait_status(w, "ready", m[1])
    for _, one in ipairs(m) do one:crash() end
    for _, one in ipairs(m) do one:start() end
    t:wait_status(w, "ready", m[1])
    cluster.wait_for("the agents to be back", 20, function()
      for _, one in ipairs(w) do
        local s = one:json("block", "status")
        if not s.manager then return false, one.label end
      end
      return true
    end)
    for _, one in ipairs(w) do assert.equal(0, count(events_of(m[2], one.node_id), "node.down"), one.label) end
  end))

  it("is kept of managers, too, also when it was the leader", cluster.scenario(function(t)
    local m = t:cluster(3)
    for _, one in ipairs(m) do one.node_id = one:json("manager", "status").node_id end
    t:wait_status(m, "ready", m[1])
    local lost = t:leader()
    lost:crash()
    local witness = lost == m[1] and m[2] or m[1]
    t:wait_status({ lost }, "down", witness, 30)
    lost:start()
    t:wait_status(m, "ready", witness, 30)
    for _, one in ipairs(m) do
      assert.equal(one == lost and 1 or 0, count(events_of(witness, one.node_id), "node.down"), one.label)
    end
  end))

  it("is doubted by a leader to which most of them are lost at once, and then believed", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(4, m)
    t:wait_status(w, "ready", m)
    local gone = table.move(w, 1, 3, 1, {})
    for _, one in ipairs(gone) do one:crash() end
    t:wait_status(gone, "down", m, 60)
    local kinds, doubted = {}, nil
    for i, event in ipairs(m:json("events")) do
      kinds[i] = event.kind
      if event.kind == "leader.suspects_itself" then doubted = i end
      assert.is_true(event.kind ~= "node.down" or doubted ~= nil, table.concat(kinds, " "))
    end
    assert.truthy(doubted, table.concat(kinds, " "))
    t:wait_status({ w[4] }, "ready", m)
  end))

  it("is not for a folder that is older than one that has been here", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(1, m)[1]
    t:wait_status({ w }, "ready", m)
    assert.equal(0, (w:stop()))
    local old = assert(proc.read_file(w.dir .. "/key.json"))
    w:start()
    cluster.wait_for("its second start to be recorded", 20, function()
      return count(events_of(m, w.node_id), "node.ready") == 2, table.concat(events_of(m, w.node_id), " ")
    end)
    w:crash()
    proc.write_file(w.dir .. "/key.json", old)
    w:start()
    cluster.wait_for("it to be refused", 20, function()
      local kinds = events_of(m, w.node_id)
      return count(kinds, "node.refused") == 1, table.concat(kinds, " ")
    end)
    assert.truthy(w:log():find("copied, or put back from a copy", 1, true), w:log_tail(20))
  end))
end)

describe("the gossip key", function()
  it("is changed while everything runs, and when a node is removed", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(3, m[1])
    t:wait_status(w, "ready", m[1])
    local function wait_key(id)
      cluster.wait_for("all nodes to use key " .. id, 30, function()
        local s = m[2]:json("cluster", "gossip-key", "status")
        return s.phase == "idle" and #s.keys == 1 and s.keys[1].id == id and not s.wanted, s
      end)
    end
    wait_key(1)
    m[3]:json("cluster", "gossip-key", "rotate")
    wait_key(2)
    m[1]:json("node", "rm", "--force", w[3].node_id)
    wait_key(3)
    for _, event in ipairs(m[1]:json("events")) do assert.are_not.equal("gossip_key.late", event.kind) end
    -- They still hear of each other.
    w[1]:crash()
    t:wait_status({ w[1] }, "down", m[1])
    t:wait_status({ w[2] }, "ready", m[1])
  end))
end)
