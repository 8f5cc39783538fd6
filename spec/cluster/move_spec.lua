-- Managers that are started at another address than before: the others find them, and nobody is told by hand.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- Stops these managers, all of them before the first is started again at another address.
local function move(list, address, what)
  for _, m in ipairs(list) do assert.equal(0, m:stop()) end
  for _, m in ipairs(list) do
    m.address = address or m.address
    for _, port in ipairs(what or { "raft_port", "remote_port", "gossip_port" }) do m[port] = proc.free_port() end
  end
  for _, m in ipairs(list) do m:launch() end
  for _, m in ipairs(list) do m:answers() end
end

-- Waits until each of @list shows each of them reachable, at its address of now.
local function settled(t, list, of)
  local found = cluster.wait_for(("%d managers to find each other"):format(#list), 30, function()
    local rows
    for _, m in ipairs(of or list) do
      local result = m:cli("--json", "manager", "members")
      rows = result.code == 0 and result.json or {}
      local good, leader = 0, false
      for _, row in ipairs(rows) do
        local at = t:by_address(row.raft_address)
        good = good + (row.reachable and not row.stale and at and row.remote_address == at:remote() and 1 or 0)
        leader = leader or row.leader
      end
      if good ~= #list or #rows ~= #list or not leader then return false, { m.label, rows } end
    end
    return rows
  end)
  return found
end

local function key_json(m)
  return json.decode(proc.read_file(m.dir .. "/key.json"))
end

-- Gossip's view on @m: node id -> address of those that are alive.
local function gossip_of(m)
  return m:json("lua", "-e", [[
    local out = {}
    for _, member in ipairs(require("symphony.cluster.gossip").members()) do
      if member.state == "alive" then out[member.node_id] = member.address end
    end
    return out]])
end

describe("a manager that is started at another address", function()
  it("is found there by all, whether it leads or not", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(1, m[1])[1]
    t:wait_status({ w }, "ready", m[1])
    local leader, others = t:leader()
    local value = 0
    for i, case in ipairs { { others[1], "127.0.0.2" }, { leader, "127.0.0.3" }, { others[1], "127.0.0.2" } } do
      local moved, address = case[1], case[2]
      local before, id = moved:raft(), moved:member().node_id
      local rest = {}
      for _, each in ipairs(m) do
        if each ~= moved then rest[#rest + 1] = each end
      end
      move({ moved }, address)
      settled(t, m)
      value = value + 1
      moved:json("kv", "put", "a", tostring(value))
      for _, each in ipairs(m) do assert.equal(tostring(value), each:json("kv", "get", "a").value) end
      assert.truthy(moved:log():find(("is %s now, and was %s"):format(moved:raft(), before), 1, true))
      -- All that is shown.
      for _, each in ipairs(m) do
        local node = each:json("node", "inspect", id)[1]
        assert.same({ raft = moved:raft(), remote = moved:remote(), gossip = ("%s:%d"):format(address,
          moved.gossip_port) }, node.addresses)
        local events = each:json("events")
        local told
        for _, event in ipairs(events) do
          told = told or event.kind == "node.updated" and event.node_id == id
            and event.message:find("raft address " .. moved:raft(), 1, true)
        end
        assert.truthy(told, "no event")
      end
      cluster.wait_for("gossip to have it there", 20, function()
        for _, each in ipairs(rest) do
          local at = gossip_of(each)[id]
          if at ~= ("%s:%d"):format(address, moved.gossip_port) then return false, at end
        end
        return true
      end)
      cluster.wait_for("a certificate for where it is", 20, function()
        local hosts = moved:json("lua", "-e", [[return require("sym.crypto").cert_hosts(
          require("symphony.cluster.identity").tls.cert)]])
        return table.concat(hosts, " "):find(address, 1, true), hosts
      end)
      cluster.wait_for("all to keep it for their next start", 20, function()
        for _, each in ipairs { w, rest[1], rest[2] } do
          local at = table.concat(key_json(each).managers, " ")
          if not at:find(moved:remote(), 1, true) then return false, at end
        end
        return true
      end)
      assert.equal(i == 3 and 2 or 1, key_json(moved).moves)
    end
    t:wait_status({ w }, "ready", m[1])
    -- They have kept it, all of them: raft's own configuration knows only of before.
    for _, each in ipairs(m) do assert.equal(0, each:stop()) end
    for _, each in ipairs(m) do each:launch() end
    for _, each in ipairs(m) do each:answers() end
    settled(t, m)
    m[1]:json("kv", "put", "a", "last")
  end))

  it("finds the others when the state has to be made anew, too", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    for i, each in ipairs(m) do
      move({ each }, "127.0.0." .. i + 1)
      settled(t, m)
    end
    -- As after a cut of power everywhere. Two of them come up at yet another address.
    for _, each in ipairs(m) do assert.equal(0, each:stop()) end
    for _, each in ipairs(m) do
      proc.remove_tree(each.dir .. "/state")
      each.raft_port = each ~= m[1] and proc.free_port() or each.raft_port
    end
    for _, each in ipairs(m) do each:launch() end
    for _, each in ipairs(m) do each:answers() end
    settled(t, m)
    assert.equal("1", m[1]:json("kv", "get", "a").value)
  end))

  it("finds another that has moved at the same time", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    local leader, others = t:leader()
    move({ leader, others[1] }, "127.0.0.2")
    settled(t, m)
    others[2]:json("kv", "put", "a", "2")
    move(others, "127.0.0.3")
    settled(t, m)
    leader:json("kv", "put", "a", "3")
    assert.equal("3", others[1]:json("kv", "get", "a").value)
  end))

  it("finds the others by their remote ports when that of raft is another one on all", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    move(m, nil, { "raft_port" })
    settled(t, m)
    m[2]:json("kv", "put", "a", "2")
    -- And when gossip's is, too.
    move(m, nil, { "raft_port", "gossip_port" })
    settled(t, m)
    m[3]:json("kv", "put", "a", "3")
  end))

  it("finds the others by a worker when all have moved at once", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(1, m[1])[1]
    t:wait_status({ w }, "ready", m[1])
    move(m, "127.0.0.2")
    settled(t, m)
    m[1]:json("kv", "put", "a", "1")
    t:wait_status({ w }, "ready", m[1], 30)
    cluster.wait_for("the worker to have a manager again", 30, function()
      local status = w:json("block", "status")
      return status.manager, status
    end)
    cluster.wait_for("the worker to know where they are", 30, function()
      local at = table.concat(key_json(w).managers, " ")
      return at:find(m[1]:remote(), 1, true) and at:find(m[3]:remote(), 1, true), at
    end)
  end))

  it("is told of the others where nobody has stayed", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    move(m, "127.0.0.2")
    assert.equal("no_quorum", m[1]:fails("kv", "put", "a", "2").code)
    assert.equal("unreachable", m[1]:fails("manager", "meet", "127.0.0.2:" .. proc.free_port()).code)
    for i = 2, 3 do m[i]:json("manager", "meet", m[1]:remote()) end
    settled(t, m)
    m[2]:json("kv", "put", "a", "2")
  end))

  it("leaves its address to another", cluster.scenario(function(t)
    local m = t:cluster(3)
    local left = { raft_port = m[2].raft_port, remote_port = m[2].remote_port, gossip_port = m[2].gossip_port }
    move({ m[2] }, "127.0.0.2")
    settled(t, m)
    local fresh = t:manager()
    for name, port in pairs(left) do fresh[name] = port end
    fresh:start():json("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    settled(t, t.managers)
    for _, each in ipairs(t.managers) do assert.equal(0, each:stop()) end
    for _, each in ipairs(t.managers) do each:launch() end
    for _, each in ipairs(t.managers) do each:answers() end
    settled(t, t.managers)
    fresh:json("kv", "put", "a", "1")
    assert.equal("1", m[2]:json("kv", "get", "a").value)
  end))

  it("does not start while it runs where it was: that is a copy of its folder", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    local copy = t:copy_of(m[2], m[1], { address = "127.0.0.2" })
    local doc = key_json(copy)
    copy:launch()
    assert.equal(1, (copy.process:wait(20)))
    assert.truthy(copy:log():find("is running at " .. m[2]:remote() .. ": this folder is a copy", 1, true),
      copy:log_tail(5))
    assert.same(doc, key_json(copy))
    table.remove(t.managers)
    settled(t, m)
    m[2]:json("kv", "put", "a", "2")
  end))

  it("is found again where it always was, after a copy of its folder was heard of while it was cut off",
    cluster.scenario(function(t)
      local m = t:cluster(3)
      m[1]:json("kv", "put", "a", "1")
      local _, others = t:leader()
      local original = others[1]
      local copy = t:copy_of(original, others[2], { address = "127.0.0.2" })
      table.remove(t.managers)
      for _ = 1, 2 do -- the copy is older than that, and is refused wherever it comes itself
        assert.equal(0, original:stop())
        original:start()
      end
      settled(t, m)
      original:kill("sigstop")
      original.paused = true
      copy:launch()
      local code = copy.process:wait(30 * cluster.patience)
      assert.equal(1, code, copy:log_tail(5))
      assert.truthy(copy:log():find("this folder is an older copy", 1, true), copy:log_tail(5))
      -- They have heard of it: by gossip, or as it came.
      original:kill("sigcont")
      original.paused = nil
      settled(t, m)
      original:json("kv", "put", "a", "2")
      for _, each in ipairs(m) do assert.equal("2", each:json("kv", "get", "a").value) end
    end))

  it("follows the address that nobody chose, as it runs", cluster.scenario(function(t)
    local function make(i)
      local m = t:manager()
      if i > 1 then return m end
      function m:command()
        return { cluster.symphonyd, "manager", "--config-dir", self.dir, "--log-format", "text",
          "--listen-raft-port", tostring(self.raft_port), "--listen-remote-port", tostring(self.remote_port),
          "--listen-gossip-port", tostring(self.gossip_port) }
      end
      return m
    end
    local m = t:cluster(3, { make = make })
    m[1].address = "127.0.0.9"
    m[1]:json("lua", "-e", [[
      require("sym.sys").default_address = function() return "127.0.0.9" end
      require("symphony.cluster.advertise").has = function() return false end
      require("symphony.cluster.lifecycle").look_after()
      return {}]])
    settled(t, m)
    assert.equal(m[1]:raft(), m[3]:json("node", "inspect", m[1]:member().node_id)[1].addresses.raft)
    m[2]:json("kv", "put", "a", "1")
    assert.equal("1", m[1]:json("kv", "get", "a").value)
  end))

  it("may be alone, or recovered, and has others come to it", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    local leader, others = t:leader()
    for _, each in ipairs(others) do each:crash() end
    move({ leader }, "127.0.0.2")
    leader:json("manager", "recover", "--yes")
    assert.equal("1", leader:json("kv", "get", "a").value)
    move({ leader }, "127.0.0.3")
    settled(t, { leader })
    leader:json("kv", "put", "a", "2")
    local fresh = t:manager():start()
    fresh:json("manager", "join", leader:remote(), "--token", t.tokens.manager)
    settled(t, { leader, fresh })
  end))
end)
