-- The client: every command's help, the JSON that others rely on, exit codes, watches, the prompt.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

local commands = {
  "manager init", "manager join", "manager leave", "manager members", "manager remove", "manager recover",
  "manager status", "manager transfer", "token create", "token ls", "token rm", "token rotate", "node approve",
  "kv put", "kv get", "kv rm", "kv ls", "kv watch", "txn", "cluster backup", "cluster restore", "version", "help",
  "lua",
}

local function words(text)
  local list = {}
  for word in text:gmatch("%S+") do list[#list + 1] = word end
  return list
end

local function keys_of(value)
  local keys = {}
  for k in pairs(value) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end

describe("symphony", function()
  it("helps with every command, without a daemon", function()
    for _, command in ipairs(commands) do
      local list = words(command)
      local help = cluster.cli("/nonexistent/control.sock", "help", table.unpack(list))
      assert.equal(0, help.code, command .. ": " .. help.err)
      assert.truthy(help.out:find("[Uu]sage"), command .. ": " .. help.out)
      list[#list + 1] = "--help"
      local flag = cluster.cli("/nonexistent/control.sock", table.unpack(list))
      assert.equal(0, flag.code, command .. ": " .. flag.err)
      assert.equal(help.out, flag.out, command .. ": help and --help differ")
    end
    local all = cluster.cli("/nonexistent/control.sock", "help")
    assert.equal(0, all.code)
    for _, command in ipairs(commands) do
      assert.truthy(all.out:find(words(command)[1], 1, true), command .. " is not in help")
    end
  end)

  it("tells wrong usage (2) from no daemon (3)", cluster.scenario(function(t)
    local nowhere = t.root .. "/nowhere.sock"
    for _, line in ipairs { "nonsense", "kv", "kv put", "kv put a", "kv nonsense", "manager remove",
      "--nonsense", "token create --uses zero", "help nonsense", "kv get a b c" } do
      local result = cluster.cli(nowhere, table.unpack(words(line)))
      assert.equal(2, result.code, ("`%s`: %s%s"):format(line, result.out, result.err))
      assert.truthy(#result.err > 0, line)
    end
    for line, topic in pairs { ["kv nonsense"] = "kv", ["cluster gossip-key"] = "cluster gossip-key",
      ["cluster rotate-ca now"] = "cluster rotate-ca" } do
      local result = cluster.cli(nowhere, table.unpack(words(line)))
      assert.truthy(result.err:find("symphony help " .. topic .. " shows", 1, true), result.err)
    end
    local result = cluster.cli(nowhere, "kv", "get", "a")
    assert.equal(3, result.code)
    assert.truthy(result.err:find(nowhere, 1, true), result.err)
    assert.truthy(result.err:find("symphonyd"), result.err)
    -- A socket's file that nobody listens on.
    local m = t:manager():start()
    m:crash()
    assert.equal(3, m:cli("version").code == 0 and m:cli("kv", "get", "a").code or 3)
    assert.equal(3, m:cli("manager", "status").code)
    m:start()
    assert.equal(0, m:cli("manager", "status").code)
  end))

  it("finds the socket by default, by environment and by flag", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local function run(argv, options)
      options.timeout = 10
      return proc.run(argv, options)
    end
    local line = { cluster.symphony, "--json", "manager", "members" }
    assert.equal(0, run(line, { cwd = m.dir }).code)
    assert.equal(0, run(line, { cwd = t.root, env = { SYMPHONY_SOCKET = m.socket } }).code)
    assert.equal(3, run(line, { cwd = t.root, env = { SYMPHONY_SOCKET = false } }).code)
    assert.equal(0, run({ cluster.symphony, "--socket", m.socket, "manager", "members" },
      { cwd = t.root, env = { SYMPHONY_SOCKET = "/nonexistent" } }).code)
  end))

  it("prints its version", function()
    local result = cluster.cli("/nonexistent", "--version")
    assert.equal(0, result.code)
    assert.truthy(result.out:find("%d+%.%d+%.%d+"), result.out)
    assert.equal(0, cluster.cli("/nonexistent", "version").code)
    assert.equal(0, proc.run({ cluster.symphonyd, "--version" }).code)
    assert.equal(0, proc.run({ cluster.symphonyd, "--help" }).code)
    assert.equal(2, proc.run({ cluster.symphonyd, "conductor" }).code)
  end)

  it("refuses timeouts that do not go together, given or not", function()
    for _, flags in ipairs { { "--election-ms", "60" }, { "--heartbeat-ms", "250" },
      { "--election-ms", "100", "--heartbeat-ms", "60" } } do
      local argv = { cluster.symphonyd, "manager", "--config-dir", "/nonexistent" }
      local result = proc.run(table.move(flags, 1, #flags, #argv + 1, argv))
      assert.equal(2, result.code, table.concat(flags, " ") .. ": " .. result.err)
      assert.truthy(result.err:find("twice", 1, true), result.err)
    end
  end)

  it("takes a name for what others are told, but not anything", cluster.scenario(function(t)
    for _, text in ipairs { "", "a b", "-x", "host:1", "1.2.3", "999.1.1.1", "[::1]", ("a"):rep(300) } do
      local result = proc.run { cluster.symphonyd, "manager", "--config-dir", t.root .. "/none", "--advertise-addr",
        text }
      assert.equal(2, result.code, text .. ": " .. result.err)
    end
    local m = t:cluster(3, { flags = { "--advertise-addr", "localhost" } })
    for i, row in ipairs(m[2]:json("manager", "members")) do
      assert.equal("localhost:" .. m[i].raft_port, row.raft_address)
      assert.equal("localhost:" .. m[i].remote_port, row.remote_address)
    end
    for _, each in ipairs(m) do each:stop() end
    for _, each in ipairs(m) do each:start("--advertise-addr", "localhost") end
    t:wait_voters(3, m[1])
    m[3]:json("kv", "put", "a", "1")
  end))

  it("says who may use a socket that this user may not", cluster.scenario(function(t)
    if uv.getuid() ~= 0 then return pending("only root can be another user") end
    local m = t:manager():start()
    assert(uv.fs_chmod(t.root, 493))
    assert(uv.fs_chmod(m.dir, 493))
    for _, line in ipairs { "version", "manager status", "kv put a b", "lua -e 1" } do
      local argv = { cluster.symphony, "--socket", m.socket, table.unpack(words(line)) }
      local result = proc.run(argv, { uid = 65534, gid = 65534 })
      assert.equal(4, result.code, line .. ": " .. result.out .. result.err)
      assert.truthy(result.err:find("this user may not use it", 1, true), result.err)
      assert.truthy(result.err:find("--socket-group", 1, true), result.err)
      assert.equal(line == "version", result.out:find("^symphony %d") ~= nil, result.out)
      assert.is_nil(result.out:find("does not answer", 1, true), result.out)
    end
  end))
end)

describe("--json", function()
  it("has the shapes that others rely on", cluster.scenario(function(t)
    local m = t:manager():start()
    local init = m:json("manager", "init")
    assert.same({ "manager", "worker" }, keys_of(init.tokens))
    for _, field in ipairs { "cluster_id", "node_id" } do assert.is_string(init[field]) end
    assert.equal(1, init.raft_node_id)
    local row = m:json("manager", "members")[1]
    assert.equal(1, row.raft_node_id)
    assert.equal(init.node_id, row.node_id)
    assert.equal(26, #row.node_id)
    assert.is_string(row.name)
    assert.equal("voter", row.raft_role)
    assert.is_true(row.leader)
    assert.is_true(row.reachable)
    assert.equal("127.0.0.1:" .. m.raft_port, row.raft_address)
    assert.equal("127.0.0.1:" .. m.remote_port, row.remote_address)
    local put = m:json("kv", "put", "a", "1")
    assert.equal("integer", math.type(put.revision))
    m:json("kv", "put", "a", "2")
    local get = m:json("kv", "get", "a")
    assert.same({ "create_revision", "key", "mod_revision", "value" }, keys_of(get))
    assert.same({ "a", "2", put.revision, put.revision + 1 },
      { get.key, get.value, get.create_revision, get.mod_revision })
    m:json("kv", "put", "b/1", "x")
    m:json("kv", "put", "b/2", "y")
    local list = m:json("kv", "ls", "b/")
    assert.same({ "b/1", "b/2" }, { list[1].key, list[2].key })
    assert.same(keys_of(get), keys_of(list[1]))
    assert.equal(3, #m:json("kv", "ls"))
    assert.same({}, m:json("kv", "ls", "none/"))
    local missing, result = m:fails("kv", "get", "none")
    assert.equal("not_found", missing.code)
    assert.equal(1, result.code)
    m:json("kv", "rm", "a")
    assert.equal("not_found", m:fails("kv", "get", "a").code)
    assert.is_table(m:json("manager", "status"))
    assert.is_table(m:json("version"))
    local token = m:json("token", "create", "--role", "manager", "--ttl", "2h", "--uses", "3", "--label", "zone=a")
    assert.truthy(token.token:find("^SYMTKN%-1%-"))
    local found
    for _, each in ipairs(m:json("token", "ls")) do
      if each.id == token.id then found = each end
      assert.is_nil(each.token, "token ls shows a secret")
    end
    assert.equal(3, found.uses)
    assert.same({ zone = "a" }, found.labels)
    m:json("token", "rm", token.id)
    assert.equal("not_found", m:fails("token", "rm", token.id).code)
    local rotated = m:json("token", "rotate", "--role", "manager")
    assert.equal(1, #rotated.removed)
    assert.truthy(rotated.token:find("^SYMTKN%-1%-"))
  end))
end)

describe("an empty list", function()
  it("is [] wherever one is printed", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local rows = m:json("token", "ls")
    assert.equal(2, #rows)
    local function printed(...)
      local result = m:cli("--json", ...)
      assert.equal(0, result.code, result.command .. ": " .. result.err)
      return result.out
    end
    assert.equal(2, select(2, printed("token", "ls"):gsub('"cidrs":%[%]', "")), printed("token", "ls"))
    for _, row in ipairs(rows) do m:json("token", "rm", row.id) end
    for _, line in ipairs { "kv ls", "kv ls none/", "token ls", "node pending" } do
      assert.equal("[]\n", printed(table.unpack(words(line))), line)
    end
    for _, code in ipairs { "kv.ls('')", "kv.ls()", "state.list('/none')",
      "require('symphony.cluster.state').list('/none/')" } do
      assert.equal("[]\n", printed("lua", "-e", code), code)
    end
    local fields = {
      { "rotate's removed", "removed", printed("token", "rotate", "--role", "worker", "--ttl", "1h") },
      { "a new token's cidrs", "cidrs", printed("token", "create", "--role", "worker") },
      { "the steps of what would be refused", "steps", printed("manager", "remove", "1", "--plan") },
    }
    for _, case in ipairs(fields) do
      assert.truthy(case[3]:find(('"%s":[]'):format(case[2]), 1, true), case[1] .. ": " .. case[3])
    end
    t:manager():start():json("manager", "join", m:remote(), "--token", m:json("token", "create", "--role",
      "manager").token)
    local third = t:manager():start()
    assert.truthy(third:cli("--json", "manager", "status").out:find('"warnings":[]', 1, true))
    third:json("manager", "join", m:remote(), "--token", m:json("token", "create", "--role", "manager").token)
    t:wait_voters(3, m)
    cluster.wait_for("no warning", 10, function()
      local out = printed("manager", "status")
      return out:find('"warnings":[]', 1, true), out
    end)
    -- At the API's doors too.
    for _, target in ipairs { "/v1/kv?prefix=none/", "/v1/kv?prefix=none/&stale=ok" } do
      assert.equal("[]", (m:http("GET", target).body:gsub("%s+$", "")))
    end
  end))
end)

describe("kv", function()
  it("prints values as they are, and takes them from standard input", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local bytes = {}
    for i = 0, 255 do bytes[i + 1] = string.char(i) end
    local value = table.concat(bytes)
    assert.equal(0, m:cli("kv", "put", "bytes", "-", { stdin = value }).code)
    assert.equal(value, m:cli("kv", "get", "bytes").out:sub(1, 256))
    m:json("kv", "put", "ключ/…", "значение")
    assert.equal("значение", m:json("kv", "get", "ключ/…").value)
    assert.equal("", m:json("kv", "get", m:json("kv", "put", "empty", "").key or "empty").value)
    -- Keys of any bytes, typed in a folder whose name is not UTF-8 either.
    local odd = t:folder "\xff"
    for _, key in ipairs { "\xff\xfe\n", "a b\n\27[31m", "'" } do
      assert.equal(0, m:cli("kv", "put", key, "v" .. key, { cwd = odd }).code)
      assert.equal("v" .. key, m:cli("kv", "get", key, { cwd = odd }).out)
      local listed = m:cli("--json", "kv", "ls", key, { cwd = odd })
      assert.equal(1, #listed.json, listed.err)
      assert.equal(0, m:cli("kv", "rm", key, { cwd = odd }).code)
      local gone = m:cli("kv", "get", key, { cwd = odd })
      assert.truthy(gone.code == 1 and gone.err:find("there is no key", 1, true), gone.err)
      assert.is_nil(gone.err:find("[\27\xff]"), gone.err)
    end
    local failure = m:fails("lua", "-e", "return '\xff'")
    assert.equal("invalid", failure.code)
    assert.equal("--x", m:json("kv", "get", m:json("kv", "put", "dashes", "--", "--x").key or "dashes").value)
  end))

  it("watches what changes, until it is cancelled", cluster.scenario(function(t)
    local m = t:cluster(3)
    local watch = proc.begin({ cluster.symphony, "--socket", m[2].socket, "--json", "kv", "watch", "w/" },
      { hold_stdin = true })
    cluster.wait_for("the watch to see a key", 10, function()
      m[1]:json("kv", "put", "w/1", "one")
      return watch.out:find("w/1", 1, true), watch.out .. watch.err
    end)
    m[3]:json("kv", "put", "other", "x")
    m[3]:json("kv", "rm", "w/1")
    cluster.wait_for("the delete", 10, function() return watch.out:find("delete", 1, true), watch.out end)
    assert.falsy(watch.out:find("other", 1, true))
    assert.is_nil(watch.process.code)
    watch.process:kill("sigint")
    assert.truthy(proc.pump(10, watch.ended), "Ctrl-C does not end the watch")
    assert.equal(130, watch.process.code)
    watch.stdin:close()
    -- And it ends when its daemon does.
    local second = proc.begin { cluster.symphony, "--socket", m[2].socket, "kv", "watch" }
    proc.run_for(0.3)
    m[2]:stop()
    assert.truthy(proc.pump(10, second.ended), "the watch outlives its daemon")
    assert.not_equal(0, second.process.code)
  end))
end)

describe("txn", function()
  it("compares and changes at once", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local first = m:json("txn", "-", { stdin = '{"compare": [{"key": "a", "absent": true}], "ops": [{"put": "a", ' ..
      '"value": "1"}, {"put": "b", "value": "2"}]}' })
    assert.equal("integer", math.type(first.revision))
    assert.equal("2", m:json("kv", "get", "b").value)
    local conflict, result = m:fails("txn", "-", { stdin = '{"compare": [{"key": "a", "absent": true}], "ops": ' ..
      '[{"put": "a", "value": "3"}]}' })
    assert.equal("conflict", conflict.code)
    assert.equal(1, result.code)
    assert.equal("1", m:json("kv", "get", "a").value)
  end))
end)

describe("lua", function()
  it("evaluates a line after the other in the daemon, at a prompt", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local prompt = ("exec %s --socket %s lua"):format(cluster.symphony, m.socket)
    local result = proc.run({ "script", "-qec", prompt, "/dev/null" },
      { stdin = "1 + 1\nx = 20\nx + 2.5\nerror('oops')\n'still' .. ' here'\n\4",
        env = { NO_COLOR = "1", XDG_STATE_HOME = t:folder "state" } })
    assert.falsy(result.timed_out, result.out)
    assert.truthy(result.out:find("2\r?\n.*22.5\r?\n.*oops.*still here"), result.out)
    m:json("kv", "put", "a", "1")
  end))

  it("runs a piece of code, and fails when that does", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    assert.equal("42\n", m:cli("lua", "-e", "6 * 7").out)
    assert.equal("3\n", m:cli("lua", { stdin = "local x = 1\nprint(x + 2)\n" }).out)
    for _, code in ipairs { "error('oops')", "if", "while true do end" } do
      local result = m:cli("--timeout", "20", "lua", "-e", code)
      assert.not_equal(0, result.code, code)
      assert.truthy(#result.err > 0, code)
    end
    m:json("kv", "put", "a", "1")
  end))

  it("finds the operator's own modules, and says what is wrong with one", cluster.scenario(function(t)
    local dir, second = t:folder "modules", t:folder "more"
    proc.write_file(dir .. "/mine.lua", "return { answer = function(n) return n + 1 end }")
    proc.write_file(dir .. "/broken.lua", "return {")
    proc.write_file(dir .. "/raises.lua", "error('oops')")
    proc.write_file(second .. "/mine.lua", "return 'the second folder'")
    proc.write_file(second .. "/other.lua", "return 'the other'")
    local m = t:manager():start("--lua-dir", dir, "--lua-dir", second)
    m:json("manager", "init")
    assert.equal("42\n", m:cli("lua", "-e", "require('mine').answer(41)").out)
    assert.equal('"the other"\n', m:cli("--json", "lua", "-e", "(require 'other')").out)
    for module, why in pairs {
      broken = dir .. "/broken.lua:1: unexpected symbol", raises = dir .. "/raises.lua:1: oops",
      none = "module 'none' not found" } do
      local result = m:cli("lua", "-e", ("require '%s'"):format(module))
      assert.equal(1, result.code)
      assert.truthy(result.err:find(why, 1, true), result.err)
      m:json("kv", "put", "a", module) -- the daemon goes on
    end
    -- Mended, it is found.
    proc.write_file(dir .. "/broken.lua", "return 'mended'")
    assert.equal('"mended"\n', m:cli("--json", "lua", "-e", "(require 'broken')").out)
  end))
end)
