-- The commands of README.md and docs/operations.md, as they are written there, do what is said of them.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

-- The commands shown below the heading @title of @path, in their order.
local function commands_of(path, title)
  local list, inside = {}, false
  for line in assert(proc.read_file(path)):gmatch("[^\n]+") do
    local heading = line:match("^## (.*)$")
    if heading then inside = heading == title end
    local words = line:match("^    +symphony (.*)$")
    if inside and words then list[#list + 1] = words end
  end
  assert.is_true(#list > 0, path .. " shows no commands below " .. title)
  return list
end

-- Takes the next of @list, which has to begin with @words, and runs it against @m with what stands in <> filled in
-- from @fill. Returns its result.
local function follow(list, m, words, fill)
  local line = table.remove(list, 1)
  assert.truthy(line and line:find(words, 1, true) == 1, ("shown is \"%s\" where this follows \"%s\""):format(
    tostring(line), words))
  local argv = { cluster.symphony }
  for word in line:gmatch("%S+") do
    argv[#argv + 1] = word:gsub("^<host>:27242$", "<host>"):gsub("<([%l-]+)>", fill or {})
  end
  local result = proc.run(argv, { env = { SYMPHONY_SOCKET = m.socket }, cwd = m.dir, timeout = 30 * cluster.patience })
  assert.equal(0, result.code, line .. "\n" .. result.out .. result.err)
  return result
end

local function token_of(result)
  return assert(result.out:match("SYMTKN%-1%-%w+%-%w+"), result.out)
end

local function names(m)
  local list = {}
  for i, row in ipairs(m:json("manager", "members")) do list[i] = row.raft_node_id end
  return list
end

describe("the README", function()
  it("shows commands that work", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local list = commands_of("README.md", "A first session")
    while list[1]:find("^%-%-socket") do table.remove(list, 1) end -- spec/cluster/session_spec.lua runs these
    follow(list, m, "kv put")
    assert.equal("hello", follow(list, m, "kv get").out)
    -- These go on until they are stopped; both tell of what is done meanwhile.
    local function goes_on(words, change, sign)
      assert.equal(words, table.remove(list, 1))
      local argv = { cluster.symphony }
      for word in words:gmatch("%S+") do argv[#argv + 1] = word end
      local stream = proc.begin(argv, { env = { SYMPHONY_SOCKET = m.socket } })
      cluster.wait_for("`" .. words .. "` to tell of a change", 10, function()
        m:json(table.unpack(change))
        return stream.out:find(sign, 1, true), stream.out .. stream.err
      end)
      stream.process:kill("sigint")
      cluster.wait_for("it to end", 10, stream.ended)
      assert.equal(130, stream.process.code)
    end
    goes_on("kv watch", { "kv", "put", "greeting", "again" }, "greeting")
    assert.truthy(follow(list, m, "manager status").out:find("tolerates", 1, true))
    local again = { "cert", "issue", "bob", "--role", "reader", "--force", "--out", t.root }
    goes_on("events --follow", again, "cert.issued")
    assert(uv.fs_symlink(assert(uv.fs_realpath("contrib")), m.dir .. "/contrib")) -- the commands run in its folder
    follow(list, m, "policy set quota")
    follow(list, m, "cluster backup")
    follow(list, m, "lua")
    assert.truthy(follow(list, m, "help").out:find("Commands:", 1, true))
    assert.same({}, list)
  end))
end)

describe("docs/operations.md", function()
  it("takes workers in, with a token and with an approval", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local list = commands_of("docs/operations.md", "A worker")
    local fill = { host = m:remote() }
    fill.token = token_of(follow(list, m, "token create --role worker"))
    local w = { t:worker():start(), t:worker():start() }
    assert.truthy(follow(list, w[1], "block join", fill).out:find(": ready", 1, true))
    assert.truthy(follow(list, w[1], "block status").out:find("connected to " .. m:remote(), 1, true))
    local join = proc.begin({ cluster.symphony, "--socket", w[2].socket, "block", "join", m:remote() })
    fill.fingerprint = cluster.wait_for("the fingerprint", 10, function()
      local text = join.out .. join.err
      return text:match("key fingerprint: +(%x+)"), text
    end)
    cluster.wait_for("the pending request", 10, function()
      fill.id = proc.run({ cluster.symphony, "--socket", m.socket, "node", "pending" }).out:match("\n(%x+) +worker")
      return fill.id
    end)
    assert.truthy(follow(list, m, "node pending").out:find(fill.fingerprint, 1, true))
    follow(list, m, "node approve", fill)
    cluster.wait_for("the join to end", 15, join.ended)
    assert.equal(0, join.process.code, join.out .. join.err)
    assert.same({}, list)
  end))

  it("replaces a dead manager", cluster.scenario(function(t)
    local m = t:cluster(3)
    t:wait_voters(3, m[1])
    local fill = { ["member-id"] = tostring(m[1]:member(m[3]).raft_node_id), host = m[1]:remote() }
    m[3]:crash()
    local list = commands_of("docs/operations.md", "A manager is dead and will not come back")
    follow(list, m[1], "manager members")
    fill.token = token_of(follow(list, m[1], "token create --role manager"))
    local new = t:manager():start()
    local joined = follow(list, new, "manager join", fill)
    assert.truthy(joined.out:find("standby", 1, true), joined.out)
    follow(list, m[1], "manager remove", fill)
    assert.equal(4, #names(m[1]), "--plan changed something")
    follow(list, m[1], "manager remove", fill)
    t:wait_voters(3, m[1])
    assert.same({}, list)
  end))

  it("goes on with one survivor when the quorum is gone for good", cluster.scenario(function(t)
    local m = t:cluster(3)
    t:wait_voters(3, m[1])
    m[1]:json("kv", "put", "a", "1")
    m[2]:crash()
    m[3]:crash()
    local list = commands_of("docs/operations.md", "The quorum is gone for good")
    list[1] = list[1] .. " --yes" -- which is the answer to its question
    follow(list, m[1], "manager recover")
    assert.equal("1", m[1]:json("kv", "get", "a").value)
    m[2]:start()
    cluster.wait_for("the other one to know that it is out", 20, function()
      local failure = m[2]:cli("--json", "kv", "get", "a")
      return failure.error and failure.error.code == "removed", failure.out .. failure.err
    end)
    follow(list, m[2], "manager leave")
    local token = m[1]:json("token", "create", "--role", "manager").token
    follow(list, m[2], "manager join", { host = m[1]:remote(), token = token })
    assert.equal(2, #names(m[1]))
    assert.same({}, list)
  end))

  it("backs up, restores, and brings the data up elsewhere", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local list = commands_of("docs/operations.md", "Backup and restore")
    m:json("kv", "put", "a", "1")
    follow(list, m, "cluster backup")
    m:json("kv", "put", "a", "2")
    m:json("kv", "put", "b", "3")
    list[1] = list[1] .. " --yes"
    follow(list, m, "cluster restore")
    assert.equal("1", m:json("kv", "get", "a").value)
    assert.equal("not_found", m:fails("kv", "get", "b").code)
    local new = t:manager():start()
    local token = token_of(follow(list, new, "manager init"))
    proc.write_file(new.dir .. "/backup.jsonl", assert(proc.read_file(m.dir .. "/backup.jsonl")))
    list[1] = list[1] .. " --yes"
    follow(list, new, "cluster restore --force")
    assert.equal("1", new:json("kv", "get", "a").value)
    t:manager():start():json("manager", "join", new:remote(), "--token", token)
    assert.equal(2, #names(new))
    assert.same({}, list)
  end))

  it("counts the voters right", function()
    local text = assert(proc.read_file("docs/operations.md"))
    package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
    local voters = require "symphony.cluster.voters"
    for members = 1, 9 do
      local row = members >= 5 and "5 and more" or members >= 3 and "3, 4" or "1, 2"
      local target, lost = text:match("\n| " .. row .. " | (%d) | (%w+) |")
      assert.equal(voters.target(members), tonumber(target), row)
      assert.equal(voters.tolerates(voters.target(members)), tonumber(lost) or 0, row)
    end
  end)
end)
