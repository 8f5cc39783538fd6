-- luacheck: no max line length
-- The first session, as README.md shows it: line by line, with the default ports where they are free.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local session = [[
symphonyd manager --config-dir .config/manager-01
symphony --socket .config/manager-01/control.sock manager init
symphonyd manager --config-dir .config/manager-02 --listen-raft-port 15761 --listen-remote-port 27243 --listen-gossip-port 37066
symphonyd manager --config-dir .config/manager-03 --listen-raft-port 15762 --listen-remote-port 27244 --listen-gossip-port 37067
symphony --socket .config/manager-02/control.sock manager join <host>:27242 --token <token>
symphony --socket .config/manager-03/control.sock manager join <host>:27242 --token <token>
symphony --socket .config/manager-01/control.sock manager members
symphonyd block --config-dir .config/block-01 --listen-remote-port 27245
symphonyd block --config-dir .config/block-02 --listen-gossip-port 37068 --listen-remote-port 27246
symphony --socket .config/block-01/control.sock block join <host>:27242 --token <worker token>
symphony --socket .config/block-02/control.sock block join <host>:27242 --token <worker token>
symphony --socket .config/manager-01/control.sock node ls
symphony --socket .config/manager-01/control.sock events --since 1h
symphony --socket .config/manager-01/control.sock node update <node> --availability drain
symphony --socket .config/block-01/control.sock block status
symphony --socket .config/manager-01/control.sock cert issue anna --role operator --out anna
curl --cacert anna/ca.crt --cert anna/anna.crt --key anna/anna.key https://<address>/v1/nodes
curl --cacert anna/ca.crt --cert anna/anna.crt --key anna/anna.key https://<address>/metrics
symphony --socket .config/manager-01/control.sock cluster gossip-key rotate
symphony --socket .config/manager-01/control.sock manager remove <member-id>
]]

-- The line of the session that has @text in it.
local function line_with(text)
  for line in session:gmatch("[^\n]+") do
    if line:find(text, 1, true) then return line end
  end
end
local INIT, LS, ISSUE = line_with "manager init", line_with "node ls", line_with "cert issue"
local NODES, METRICS = line_with "/v1/nodes", line_with "/metrics"

-- Every port of the session to itself, or all of them to others when one is taken.
local function port_map()
  local ports = { 15760, 15761, 15762, 27242, 27243, 27244, 27245, 27246, 37065, 37066, 37067, 37068 }
  local map, free = {}, true
  for _, port in ipairs(ports) do free = free and proc.port_is_free(port) end
  for _, port in ipairs(ports) do map[tostring(port)] = tostring(free and port or proc.free_port()) end
  return map, free
end

-- Runs the session's lines; what stands in <> comes from @fill, a table of functions. Returns the output of each
-- client line, by its line.
local function play(t, lines, fill)
  local map, free = port_map()
  local outputs = {}
  local function words_of(line)
    local words = {}
    for word in line:gsub("%d%d%d%d%d", map):gsub("<([%w -]+)>", function(name)
      return tostring(fill[name](outputs))
    end):gmatch("%S+") do
      words[#words + 1] = word
    end
    return words
  end
  for line in lines:gmatch("[^\n]+") do
    local words = words_of(line)
    if words[1] == "symphonyd" then
      local kind, dir = words[2], words[4]
      local m = t[kind == "manager" and "manager" or "worker"](t, { dir = t.root .. "/" .. dir })
      if not free and not line:find("--listen", 1, true) then
        for flag, port in pairs { raft = "15760", remote = "27242", gossip = "37065" } do
          words[#words + 1] = ("--listen-%s-port"):format(flag)
          words[#words + 1] = map[port]
        end
      end
      words[1], words[4] = cluster.symphonyd, m.dir
      m.command = function() return words end
      m:start()
      m.remote_port = tonumber(map[line:match("remote%-port (%d+)") or "27242"])
      m.raft_port = kind == "manager" and tonumber(map[line:match("raft%-port (%d+)") or "15760"]) or nil
    else
      if words[1] == "symphony" then words[1] = cluster.symphony end
      local result = proc.run(words, { cwd = t.root, timeout = 30 * cluster.patience })
      assert.equal(0, result.code, line .. "\n" .. result.out .. result.err)
      outputs[line] = result.out
      t.last_output = result.out
    end
  end
  return outputs
end

local function socket(t, n) return ("%s/.config/manager-%02d/control.sock"):format(t.root, n) end

local function members(t, n)
  local result = cluster.cli(socket(t, n), "--json", "manager", "members")
  assert.equal(0, result.code, result.err)
  return result.json
end

local function followers(t)
  local ids = {}
  for _, row in ipairs(members(t, 1)) do
    if not row.leader then ids[#ids + 1] = row end
  end
  return ids
end

describe("the session of the README", function()
  it("is in the README, line by line", function()
    local readme = assert(proc.read_file("README.md"))
    local at = 1
    for line in session:gmatch("[^\n]+") do
      local _, last = readme:find("\n    " .. line .. "\n", at, true)
      assert.truthy(last, "README.md lacks, or has at another place: " .. line)
      at = last
    end
  end)

  it("runs as it is written", cluster.scenario(function(t)
    local removed, drained
    local outputs = play(t, session, {
      host = function() return "127.0.0.1" end,
      token = function(printed)
        return printed[INIT]:match("manager join %S+ %-%-token (%S+)")
      end,
      ["worker token"] = function(printed)
        return printed[INIT]:match("block join %S+ %-%-token (%S+)")
      end,
      node = function(printed)
        drained = printed[LS]:match("\n(%w+) +%S+ +worker: block +ready")
        return drained
      end,
      address = function(printed)
        return printed[ISSUE]:match("https://([^/]+)/")
      end,
      ["member-id"] = function()
        t:wait_voters(3, t.managers[1])
        removed = followers(t)[1]
        return removed.raft_node_id
      end,
    })
    assert.equal(2, select(2, outputs[LS]:gsub("worker: block +ready for", "")), outputs[LS])
    assert.equal(3, select(2, outputs[LS]:gsub("manager: voter[^\n]* ready for", "")), outputs[LS])
    assert.equal(1, select(2, outputs[LS]:gsub("leader", "")), outputs[LS])
    local availability = {}
    for _, row in ipairs(assert(json.decode(outputs[NODES]))) do availability[row.node_id] = row.availability end
    assert.equal("drain", availability[drained])
    assert.truthy(outputs[METRICS]:find('\nsymphony_gossip_members{state="alive"} 5\n', 1, true), outputs[METRICS])
    local left = cluster.wait_for("two members", 10, function()
      local rows = members(t, 1)
      return #rows == 2 and rows, rows
    end)
    for _, row in ipairs(left) do assert.not_equal(removed.raft_node_id, row.raft_node_id) end
    local gone = t.managers[removed.raft_node_id == 1 and 1 or 0]
    for _, m in ipairs(t.managers) do
      if removed.raft_address:match(":" .. m.raft_port .. "$") then gone = m end
    end
    cluster.wait_for("the removed manager to say so", 10, function()
      local failure = gone:cli("--json", "kv", "put", "a", "b")
      return failure.code ~= 0 and failure.error and failure.error.hint, failure.err
    end)
  end))

  it("takes the tokens that init prints", cluster.scenario(function(t)
    local a, b = t:manager():start(), t:manager():start()
    local first = a:cli("manager", "init")
    assert.equal(0, first.code, first.err)
    local token = first.out:match("SYMTKN%-1%-%w+%-%w+")
    assert.truthy(token, first.out)
    assert.truthy(first.out:find("symphony.-manager join 127.0.0.1:" .. a.remote_port), first.out)
    local second = b:cli("manager", "join", a:remote(), "--token", token)
    assert.equal(0, second.code, second.err)
    assert.truthy((second.out .. second.err):find("no failure"), "two managers: " .. second.out .. second.err)
  end))

  it("joins without a token after an approval", cluster.scenario(function(t)
    local a, b = t:manager():start(), t:manager():start()
    a:json("manager", "init")
    local join = proc.begin { cluster.symphony, "--socket", b.socket, "manager", "join", a:remote() }
    local fingerprint = cluster.wait_for("the fingerprint", 10, function()
      local text = join.out .. join.err
      return text:match("key fingerprint: +(%x+)"), text
    end)
    local pending = cluster.wait_for("the pending request", 10, function()
      local rows = a:json("node", "pending")
      return #rows == 1 and rows[1], rows
    end)
    local wrong = a:fails("node", "approve", pending.id, "--fingerprint", ("0"):rep(64))
    assert.is_string(wrong.code)
    assert.is_nil(join.process.code, "joined with a wrong fingerprint")
    a:json("node", "approve", pending.id, "--fingerprint", fingerprint)
    assert.truthy(proc.pump(15 * cluster.patience, join.ended), "the join still waits: " .. join.out .. join.err)
    assert.equal(0, join.process.code, join.out .. join.err)
    cluster.wait_for("two members", 10, function() return #a:json("manager", "members") == 2 end)
  end))

  it("approves by itself under --dev, and says so", cluster.scenario(function(t)
    local m = { t:manager():start(), t:manager():start(), t:manager():start() }
    local init = m[1]:cli("manager", "init", "--dev")
    assert.equal(0, init.code, init.err)
    for i = 2, 3 do
      local join = m[i]:cli("manager", "join", m[1]:remote())
      assert.equal(0, join.code, join.out .. join.err)
    end
    t:wait_voters(3, m[1])
    local status = m[2]:cli("manager", "status")
    assert.truthy((status.out .. status.err):lower():find("dev"), status.out)
  end))

  -- As somebody types it on one machine: no --advertise-addr, no --bind-addr.
  local function bare(t)
    local m = t:manager()
    m.command = function(self)
      return { cluster.symphonyd, "manager", "--config-dir", self.dir, "--listen-raft-port", tostring(self.raft_port),
        "--listen-remote-port", tostring(self.remote_port), "--listen-gossip-port", tostring(self.gossip_port) }
    end
    return m:start()
  end

  it("stays on the loopback under --dev, with no address named anywhere", cluster.scenario(function(t)
    local m = { bare(t), bare(t), bare(t) }
    local token = m[1]:json("manager", "init", "--dev").tokens.manager
    m[2]:json("manager", "join", m[1]:remote())
    m[3]:json("manager", "join", "localhost:" .. m[1].remote_port, "--token", token)
    for _, row in ipairs(t:wait_voters(3, m[1])) do
      assert.truthy(row.raft_address:find("^127%.0%.0%.1:") and row.remote_address:find("^127%.0%.0%.1:"),
        row.raft_address .. " " .. row.remote_address)
    end
    m[4] = bare(t)
    for _, words in ipairs { {}, { "--token", token } } do
      local failure = m[4]:fails("manager", "join", m[1]:remote(), "--advertise", "192.0.2.1", table.unpack(words))
      assert.equal("invalid", failure.code)
      assert.truthy(failure.message:find("192.0.2.1", 1, true), failure.message)
      assert.truthy(failure.hint:find("127.0.0.1", 1, true), failure.hint)
    end
    assert.equal(3, #m[1]:json("manager", "members"))
    assert.equal(0, m[2]:stop())
    m[2]:start()
    cluster.wait_for("the restarted one to be back", 15, function()
      local row = m[1]:member(m[2])
      return row and row.reachable, row
    end)
  end))

  it("joins by the loopback and by the machine's own address", cluster.scenario(function(t)
    local m = { bare(t), bare(t), bare(t) }
    local token = m[1]:json("manager", "init").tokens.manager
    local own = m[1]:json("manager", "members")[1].remote_address
    m[2]:json("manager", "join", "127.0.0.1:" .. m[1].remote_port, "--token", token)
    m[3]:json("manager", "join", own, "--token", token)
    local hosts = {}
    for _, row in ipairs(t:wait_voters(3, m[1])) do hosts[row.raft_address:match("^(.*):")] = true end
    assert.same({ [own:match("^(.*):")] = true }, hosts)
    m[3]:json("kv", "put", "a", "1")
  end))
end)
