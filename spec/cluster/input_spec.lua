-- Wrong input of every kind: a clear error with a stable code; nothing is lost, nothing is left behind.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local load = require "spec.support.load"
local proc = require "spec.support.proc"

local root = uv.getuid() == 0

-- A failed join leaves a node as it was: it can be joined properly right after.
local function untouched(m)
  assert.is_nil(uv.fs_stat(m.dir .. "/key.json"), "key.json was left behind")
  assert.is_nil(uv.fs_stat(m.dir .. "/raft"), "a raft folder was left behind")
  assert.is_true(m:is_running())
end

local function describes(failure, result)
  assert.is_string(failure.code)
  assert.truthy(#failure.message > 10, failure.message)
  assert.not_equal("internal", failure.code, failure.message)
  assert.falsy(failure.message:find("traceback"), failure.message)
  assert.falsy(failure.message:find("%.lua:%d"), failure.message)
  assert.is_true(result.code >= 1 and result.code <= 5, "exit code " .. result.code)
end

describe("a token", function()
  it("that is wrong in any way joins nobody", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local foreign = t:manager():start()
    local theirs = foreign:json("manager", "init").tokens.manager
    local joiner = t:manager():start()
    local good = t.tokens.manager
    local head, secret = good:match("^(SYMTKN%-1%-%w+%-)(%w+)$")
    local other = secret:sub(1, 1) == "1" and "2" or "1"
    local expired = m:json("token", "create", "--role", "manager", "--ttl", "1s").token
    local used = m:json("token", "create", "--role", "manager", "--uses", "1").token
    local worker = t.tokens.worker
    local elsewhere = m:json("token", "create", "--role", "manager", "--cidr", "192.0.2.0/24").token
    local removed = m:json("token", "create", "--role", "manager")
    m:json("token", "rm", removed.id)
    local taker = t:manager():start()
    taker:json("manager", "join", m:remote(), "--token", used)
    proc.run_for(1.1)
    local bad = {
      { "a wrong secret", head .. other .. secret:sub(2) },
      { "of another cluster", theirs },
      { "expired", expired },
      { "used up", used },
      { "removed", removed.token },
      { "of a worker", worker },
      { "for other addresses", elsewhere },
      { "truncated", good:sub(1, -4) },
      { "without a secret", head },
      { "of no known form", "hello" },
      { "empty", "" },
      { "of 100 kB", good .. ("a"):rep(100000) },
      { "with control characters", good .. "\1\n" },
    }
    for _, case in ipairs(bad) do
      local failure, result = joiner:fails("manager", "join", m:remote(), "--token", case[2])
      describes(failure, result)
      assert.falsy(result.err:find(secret, 1, true), case[1] .. ": the secret is shown")
      untouched(joiner)
    end
    assert.equal(2, #m:json("manager", "members"))
    joiner:json("manager", "join", m:remote(), "--token", good)
    t:wait_voters(3, m)
  end))

  it("that is guessed at makes its address wait, and nobody who has a good one", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local joiner = t:manager():start()
    -- Another secret: the last of its digits is another one, so that it is none that is too large.
    local head, last = t.tokens.manager:match("^(SYMTKN%-1%-%w+%-%w+)(%w)$")
    local guess = head .. (last == "0" and "1" or "0")
    local codes = {}
    cluster.wait_for("too many guesses", 60, function()
      codes[#codes + 1] = joiner:fails("manager", "join", m:remote(), "--token", guess).code
      return codes[#codes] == "busy" or (codes[#codes] ~= "denied" and error(codes[#codes])), codes[#codes]
    end)
    assert.is_true(#codes > 20, "after " .. #codes)
    untouched(joiner)
    joiner:json("manager", "join", m:remote(), "--token", t.tokens.manager)
    t:manager():start():json("manager", "join", m:remote(), "--token", t.tokens.manager)
    t:wait_voters(3, m)
  end))

  it("may come from a file or the environment, and never shows in a log", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local a, b = t:manager():start(), t:manager():start()
    proc.write_file(t.root .. "/token", t.tokens.manager .. "\n")
    a:json("manager", "join", m:remote(), "--token-file", t.root .. "/token")
    b:json("manager", "join", m:remote(), { env = { SYMPHONY_TOKEN = t.tokens.manager } })
    t:wait_voters(3, m)
    local secret = t.tokens.manager:match("%w+$")
    for _, each in ipairs(t.managers) do assert.falsy(each:log():find(secret, 1, true)) end
  end))
end)

describe("an address to join", function()
  it("that is of no use is told apart, in bounded time", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local joiner = t:manager():start()
    local function server(greeting)
      local tcp = uv.new_tcp()
      assert(tcp:bind("127.0.0.1", 0))
      assert(tcp:listen(16, function()
        local peer = uv.new_tcp()
        tcp:accept(peer)
        peer:read_start(function(_, data) if not data and not peer:is_closing() then peer:close() end end)
        if greeting then peer:write(greeting) end
      end))
      return tcp, "127.0.0.1:" .. tcp:getsockname().port
    end
    local ssh, ssh_address = server("SSH-2.0-OpenSSH_9.2\r\n")
    local web, web_address = server("HTTP/1.0 400 Bad Request\r\n\r\n")
    local mute, mute_address = server()
    local bad = {
      { "no-such-host.invalid:27242" }, { "127.0.0.1:" .. proc.free_port() }, { ssh_address }, { web_address },
      { mute_address }, { "127.0.0.1:99999" }, { "127.0.0.1:" .. m.raft_port }, { ":" }, { "" },
      { ("a"):rep(300) .. ":1" }, { "[::1" }, { "a b:1" },
    }
    for _, case in ipairs(bad) do
      local failure, result = joiner:fails("manager", "join", case[1], "--token", t.tokens.manager)
      describes(failure, result)
      assert.is_true(result.seconds < 25 * cluster.patience, case[1])
      untouched(joiner)
    end
    for _, each in ipairs { ssh, web, mute } do each:close() end
    -- The right cluster, but not the port for this: that is said, and which one it is.
    for _, words in ipairs { { "--token", t.tokens.manager }, {} } do
      local failure = joiner:fails("manager", "join", m:raft(), table.unpack(words))
      assert.equal("protocol", failure.code, failure.message)
      assert.truthy(failure.message:find("as a raft port does", 1, true), failure.message)
      assert.truthy(failure.hint:find("27242", 1, true), failure.hint)
      untouched(joiner)
    end
    joiner:json("manager", "join", m:remote(), "--token", t.tokens.manager)
  end))
end)

describe("init and join", function()
  it("are refused by a member", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    local before = proc.read_file(m[1].dir .. "/key.json")
    local failure, result = m[1]:fails("manager", "init")
    describes(failure, result)
    failure, result = m[2]:fails("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    describes(failure, result)
    assert.equal("exists", failure.code)
    assert.equal(before, proc.read_file(m[1].dir .. "/key.json"))
    assert.equal("1", m[2]:json("kv", "get", "a").value)
    assert.equal(3, #m[1]:json("manager", "members"))
  end))

  it("do not begin when a port is taken, and leave nothing", cluster.scenario(function(t)
    for _, which in ipairs { "raft_port", "remote_port" } do
      local m = t:manager()
      local tcp = uv.new_tcp()
      assert(tcp:bind("127.0.0.1", m[which]))
      assert(tcp:listen(1, function() end))
      m:start()
      local failure, result = m:fails("manager", "init")
      describes(failure, result)
      assert.equal("in_use", failure.code)
      assert.truthy(failure.message:find(tostring(m[which]), 1, true), failure.message)
      untouched(m)
      tcp:close()
      proc.run_for(0.05)
      m:json("manager", "init")
      m:json("kv", "put", "a", "1")
    end
  end))

  it("and a start too say which port is taken", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local joiner = t:manager():start()
    for _, which in ipairs { "raft_port", "remote_port" } do
      local function take(each)
        local tcp = uv.new_tcp()
        assert(tcp:bind("127.0.0.1", each[which]))
        assert(tcp:listen(1, function() end))
        return tcp
      end
      local taken = take(joiner)
      local failure, result = joiner:fails("manager", "join", m:remote(), "--token", t.tokens.manager)
      describes(failure, result)
      assert.equal("in_use", failure.code)
      assert.truthy(failure.message:find(tostring(joiner[which]), 1, true), failure.message)
      assert.truthy(failure.hint:find("--listen-", 1, true), failure.hint)
      untouched(joiner)
      taken:close()
      assert.equal(1, #m:json("manager", "members"))
      -- A member whose port was taken while it was away does not start, and loses nothing.
      assert.equal(0, m:stop())
      taken = take(m)
      local ended = proc.run(m:command(), { timeout = 15 * cluster.patience })
      assert.equal(1, ended.code, ended.out .. ended.err)
      assert.truthy(ended.err:find(tostring(m[which]), 1, true), ended.err)
      assert.truthy(ended.err:find("--listen-", 1, true), ended.err)
      taken:close()
      proc.run_for(0.05)
      m:start()
    end
    joiner:json("manager", "join", m:remote(), "--token", t.tokens.manager)
  end))
end)

-- Runs a daemon that cannot start: its exit code and what it said.
local function refused(m, options)
  local argv = m:command()
  if options and options.argv then argv = options.argv(argv) end
  local result = proc.run(argv, { timeout = 15 * cluster.patience })
  assert.falsy(result.timed_out, "it runs: " .. result.err)
  assert.not_equal(0, result.code)
  assert.equal(0, result.signal, result.err)
  return result.out .. result.err
end

describe("a config directory", function()
  it("in use by a running daemon is left alone", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    m:json("kv", "put", "a", "1")
    local second = t:manager { dir = m.dir }
    local said = refused(second)
    assert.truthy(said:find(m.dir .. " is in use by a running daemon", 1, true), said)
    assert.truthy(said:find("stop it first", 1, true), said)
    m:json("kv", "put", "a", "2")
  end))

  it("that is not writable, or of another user, is refused by name", cluster.scenario(function(t)
    if root then
      local theirs = t:manager()
      assert(uv.fs_mkdir(theirs.dir, 448))
      assert(uv.fs_chown(theirs.dir, 65534, 65534))
      local said = refused(theirs)
      assert.truthy(said:find(theirs.dir, 1, true) and said:find("65534", 1, true), said)
      assert(uv.fs_chmod(t.root, 493))
    end
    local closed = t:manager()
    local parent = t:folder("closed")
    closed.dir = parent .. "/manager"
    local said = refused(closed, { argv = function(argv)
      assert(uv.fs_chmod(parent, 365))
      return root and table.move(argv, 1, #argv, 5, { "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups" })
        or argv
    end })
    assert(uv.fs_chmod(parent, 448))
    assert.truthy(said:find(closed.dir, 1, true), said)
    -- Its own, and still it may not write there.
    local fixed = t:manager { dir = t:folder("fixed") }
    said = refused(fixed, { argv = function(argv)
      if root then assert(uv.fs_chown(fixed.dir, 65534, 65534)) end
      assert(uv.fs_chmod(fixed.dir, 320))
      return root and table.move(argv, 1, #argv, 5, { "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups" })
        or argv
    end })
    assert.truthy(said:find(fixed.dir, 1, true) and said:find("--config-dir", 1, true), said)
    -- A file where the folder should be, and a folder in which anybody may write.
    local file = t:manager { dir = t.root .. "/file" }
    proc.write_file(file.dir, "")
    assert.truthy(refused(file):find(file.dir, 1, true))
    local common = t:manager { dir = t:folder("common") }
    assert(uv.fs_chmod(common.dir, 511))
    said = refused(common)
    assert.truthy(said:find(common.dir, 1, true) and said:find("0700", 1, true), said)
  end))

  it("lets the socket's group through to the control socket, and to nothing else", cluster.scenario(function(t)
    if not root then return pending("only root can be another user") end
    local group, gid = proc.run({ "getent", "group", "users" }).out:match("^(%w+):[^:]*:(%d+):")
    if not group then return pending("there is no group called users") end
    assert(uv.fs_chmod(t.root, 457)) -- 0711
    local m = t:manager():start("--socket-group", group)
    m:json("manager", "init")
    m:json("kv", "put", "a", "1")
    local function mode() return uv.fs_stat(m.dir).mode & 4095 end
    local function as(groups, ...)
      return proc.run { "setpriv", "--reuid=65534", "--regid=65534",
        groups and "--groups=" .. groups or "--clear-groups", ... }
    end
    local function call(groups)
      return as(groups, "curl", "-sS", "--unix-socket", m.socket, "http://localhost/v1/kv/a")
    end
    assert.equal(456, mode()) -- 0710
    local answer = call(gid) -- one of its supplementary groups
    assert.truthy(answer.out:find('"value":"1"', 1, true), answer.out .. answer.err)
    assert.equal(7, call().code)
    for _, path in ipairs { "", "/key.json", "/raft", "/state", "/tls", "/tls/node.key", "/lock" } do
      assert.not_equal(0, as(gid, "sh", "-c", 'cat "$1" || ls "$1/"', "sh", m.dir .. path).code, path)
    end
    assert.equal("", proc.run({ "find", m.dir, "-mindepth", "1", "-perm", "/077", "!", "-name", "control.sock" }).out)
    assert.equal(0, m:stop())
    -- Without the option it is taken back.
    m:start()
    assert.equal(448, mode()) -- 0700
    assert.equal(7, call(gid).code)
    assert.equal(0, m:stop())
    -- A folder that the group may write is as bad as ever, and one daemon does not change what another one uses.
    assert(uv.fs_chmod(m.dir, 472)) -- 0730
    assert.truthy(refused(m):find("0700", 1, true))
    assert(uv.fs_chmod(m.dir, 448))
    m:start("--socket-group", group)
    assert.truthy(refused(t:manager { dir = m.dir }):find("in use", 1, true))
    assert.equal(456, mode())
    assert.equal(0, call(gid).code)
    -- Who is no member of the group cannot give it anything.
    local theirs = t:manager { dir = t:folder("theirs") }
    assert(uv.fs_chown(theirs.dir, 65534, 65534))
    local said = refused(theirs, { argv = function(argv)
      argv = table.move({ "--socket-group", group }, 1, 2, #argv + 1, argv)
      return table.move(argv, 1, #argv, 5, { "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups" })
    end })
    assert.truthy(said:find("must be a member", 1, true), said)
    assert.truthy(refused(theirs, { argv = function(argv)
      return table.move({ "--socket-group", "no-such-group" }, 1, 2, #argv + 1, argv)
    end }):find("no group is called no-such-group", 1, true))
  end))

  it("with something damaged in it: the daemon names the file and repairs nothing", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for i = 1, 50 do assert.equal(200, m:http("PUT", "/v1/kv/k" .. i, ("v"):rep(300)).status) end
    local function raft_segment()
      local best, size = nil, -1
      local folder = assert(uv.fs_scandir(m.dir .. "/raft"))
      for name in uv.fs_scandir_next, folder do
        local stat = uv.fs_stat(m.dir .. "/raft/" .. name)
        if name:find("^%d+%-%d+$") and stat.size > size then best, size = "raft/" .. name, stat.size end
      end
      return best
    end
    assert.equal(0, m:stop())
    local segment = assert(raft_segment(), "no closed segment after an orderly end")
    local damages = {
      { "key.json", function(text) return text:sub(1, #text // 2) end },
      { "key.json", function() return "" end },
      { "key.json", function() return ("\255"):rep(200) end },
      { "tls/node.crt", function(text) return text:gsub("%w", "A") end },
      { "tls/ca.crt", function() return "" end },
      { "tls/node.key", function(text) return text:sub(1, 60) end },
      { segment, function(text) return text:sub(1, 2000) .. ("\90"):rep(64) .. text:sub(2065) end },
      { segment, function(text) return "\7" .. text:sub(2) end },
    }
    for _, damage in ipairs(damages) do
      local path = m.dir .. "/" .. damage[1]
      local sound = assert(proc.read_file(path))
      local damaged = damage[2](sound)
      assert.is_true(sound ~= damaged)
      proc.write_file(path, damaged)
      local said = refused(m)
      assert.truthy(said:find(damage[1]:match("[^/]+$"), 1, true), damage[1] .. ": " .. said)
      assert.truthy(said:find("put .- back.*`symphony node rm`.*join again"), damage[1] .. ": " .. said)
      assert.is_true(damaged == proc.read_file(path), damage[1] .. " was changed")
      proc.write_file(path, sound)
    end
    m:start()
    cluster.wait_for("the value", 10, function()
      local got = m:http("GET", "/v1/kv/k50")
      return got and got.status == 200 and got.json.value == ("v"):rep(300), got and got.body
    end)
  end))

  it("copied from elsewhere, or put back from an old copy, is not started", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    assert.equal(0, m[3]:stop())
    local copy = t:manager { dir = t.root .. "/copy" }
    proc.run { "cp", "-a", m[3].dir, copy.dir }
    local said = refused(copy)
    assert.truthy(said:find(copy.dir, 1, true), said)
    m[3]:start()
    cluster.wait_for("it to be back", 10, function() return m[1]:member(m[3]).reachable end)
    for i = 1, 20 do m[1]:json("kv", "put", "a", tostring(i)) end
    -- Put back file by file: the same folders, and only the others can tell.
    m[3]:crash()
    proc.run { "sh", "-c", ('cd "%s" && find . -type f -delete && cp -a "%s"/. .'):format(m[3].dir, copy.dir) }
    local result = proc.run(m[3]:command(), { timeout = 20 * cluster.patience })
    assert.falsy(result.timed_out, "an old copy goes on: " .. result.err:sub(-2000))
    assert.not_equal(0, result.code)
    assert.truthy(result.err:find("older copy", 1, true), result.err)
    assert.equal("20", m[2]:json("kv", "get", "a").value)
    assert.equal(3, #m[1]:json("manager", "members"))
    -- Once more, with all others started anew in between: they remember.
    for i = 1, 2 do assert.equal(0, m[i]:stop()) end
    for i = 1, 2 do m[i]:start() end
    cluster.wait_for("a leader", 10, function() return m[1]:cli("kv", "put", "a", "21").code == 0 end)
    proc.run { "sh", "-c", ('cd "%s" && find . -type f -delete && cp -a "%s"/. .'):format(m[3].dir, copy.dir) }
    result = proc.run(m[3]:command(), { timeout = 20 * cluster.patience })
    assert.falsy(result.timed_out, "an old copy goes on: " .. result.err:sub(-2000))
    assert.not_equal(0, result.code)
    assert.truthy(result.err:find("older copy", 1, true), result.err)
    assert.equal("21", m[2]:json("kv", "get", "a").value)
  end))
end)

describe("the size limits", function()
  it("hold, and what fits them is taken", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local function put(key, value) return assert(m:http("PUT", "/v1/kv/" .. key, value)) end
    local long, big = ("k"):rep(1024), ("v"):rep(1 << 20)
    assert.equal(200, put(long, "1").status)
    assert.equal(200, put("big", big).status)
    assert.equal(big, m:http("GET", "/v1/kv/big").json.value)
    local refusals = {
      put(long .. "k", "1"), put("big", big .. "v"), put("a", ("v"):rep(3 << 20)),
      assert(m:http("GET", "/v1/kv/a", nil, { headers = "X-Long: " .. ("x"):rep(17000) .. "\r\n" })),
      assert(m:http("GET", "/v1/kv/" .. ("a"):rep(17000))),
    }
    for i, answer in ipairs(refusals) do
      assert.is_true(answer.status == 413 or answer.status == 431 or answer.status == 414,
        ("case %d: %d %s"):format(i, answer.status, answer.body))
    end
    local failure, result = m:fails("kv", "put", long .. "k", "1")
    describes(failure, result)
    assert.equal("too_big", failure.code)
    proc.write_file(t.root .. "/value", big .. "v")
    failure, result = m:fails("kv", "put", "a", "-", { stdin = big .. "v" })
    describes(failure, result)
    assert.equal("too_big", failure.code)
    assert.equal(404, m:http("GET", "/v1/kv/a").status)
    local function txn(n, size)
      local ops = {}
      for i = 1, n do ops[i] = ('{"put": "t%d", "value": "%s"}'):format(i, ("x"):rep(size)) end
      return assert(m:http("POST", "/v1/txn", ('{"ops": [%s]}'):format(table.concat(ops, ","))))
    end
    assert.equal(200, txn(128, 10).status)
    assert.equal(413, txn(129, 10).status)
    assert.equal(200, txn(2, 600000).status)
    assert.equal(413, txn(2, 900000).status)
    assert.is_nil(m:http("GET", "/v1/kv/t2").json.stale)
    for _, body in ipairs { "", "{", "[]", '{"ops": 1}', '{"ops": [{"put": 1}]}', '{"compare": [{}]}', "\255",
      ("["):rep(100000) } do
      local answer = assert(m:http("POST", "/v1/txn", body))
      assert.equal(400, answer.status, body:sub(1, 40) .. ": " .. answer.body)
      assert.is_string(answer.json.error.code)
    end
  end))
end)

describe("a full disk", function()
  for _, whose in ipairs { "the leader", "a follower" } do
    it("of " .. whose .. " stops writes before the log breaks, and is left by itself", cluster.scenario(function(t)
      local small = t:folder("small")
      local mounted = root and proc.run { "mount", "-t", "tmpfs", "-o", "size=256m,mode=0700", "tmpfs", small }
      if not mounted or mounted.code ~= 0 then
        return pending("mounting a small file system takes root")
      end
      local ok, err = xpcall(function()
        local m = { t:manager { dir = small .. "/manager" }, t:manager():start(), t:manager():start() }
        m[1]:start("--quota-mib", "64")
        local token = m[1]:json("manager", "init").tokens.manager
        for i = 2, 3 do m[i]:json("manager", "join", m[1]:remote(), "--token", token) end
        t:wait_voters(3, m[1])
        local lead = whose == "the leader" and m[1] or m[2]
        m[1]:json("manager", "transfer", tostring(lead:member().raft_node_id))
        m[1]:json("kv", "put", "a", "1")
        local writers = load.start(m, 4)
        writers:wait_progress(10 * cluster.patience)
        proc.run { "sh", "-c", ("head -c 1G /dev/zero > %s/ballast"):format(small) }
        for _, each in ipairs(m) do
          local failure = cluster.wait_for("writes to be refused at " .. each.label, 10, function()
            local result = each:cli("--json", "kv", "put", "a", "2")
            return result.code ~= 0 and result.error, result.out
          end)
          assert.equal("no_space", failure.code, failure.message)
          assert.truthy(failure.hint and failure.hint:find("free disk space", 1, true), failure.hint)
        end
        local count = writers.count
        proc.run_for(0.5)
        assert.equal(count, writers.count, "writes go on without room")
        for _, each in ipairs(m) do
          assert.is_true(each:is_running(), each.label .. " ended")
          assert.is_string(each:json("kv", "get", "a").value)
          assert.is_true(each:json("manager", "status").quorum)
        end
        assert.equal(lead, (t:leader()))
        assert(os.remove(small .. "/ballast"))
        writers:wait_progress(20 * cluster.patience)
        writers:stop()
        for _, failure in ipairs(writers.failures) do
          assert.truthy(failure.body and failure.body:find('"no_space"', 1, true), failure.body or failure.err)
        end
        m[2]:json("kv", "put", "a", "3")
        for _, each in ipairs(m) do assert.equal(0, each:stop()) end
        for _, each in ipairs(m) do each:start() end
        for _, each in ipairs(m) do
          cluster.wait_for("it to serve", 15, function() return each:json("kv", "get", "a").value == "3" end)
          writers:check(each)
        end
      end, function(failure) return type(failure) == "string" and debug.traceback(failure, 2) or failure end)
      for _, each in ipairs(t.managers) do
        if each:is_running() then each:crash() end
      end
      proc.run { "umount", small }
      if not ok then error(err, 0) end
    end))
  end
end)

describe("hostile connections", function()
  -- @target(i): the manager on whose remote port connection i is.
  local function thousand(t, m, target)
    local open, connected, refusals = {}, 0, 0
    for i = 1, 1000 do
      local tcp = uv.new_tcp()
      open[i] = tcp
      tcp:connect("127.0.0.1", target(i).remote_port, function(err)
        if err then refusals = refusals + 1 return end
        connected = connected + 1
        tcp:read_start(function() end)
        if i % 2 == 0 then return end
        -- The odd ones send what looks like the start of TLS, one byte at a time, for ever.
        local bytes, n = "\22\3\1\2\0\1\0\1\252\3\3", 0
        local timer = uv.new_timer()
        timer:start(math.random(200), 200, function()
          if tcp:is_closing() then
            timer:close()
            return
          end
          n = n + 1
          tcp:try_write(n <= #bytes and bytes:sub(n, n) or "\0")
        end)
      end)
    end
    cluster.wait_for("a thousand connections", 20, function() return connected == 1000, connected, refusals end)
    assert.equal(0, refusals)
    for i = 1, 20 do
      local began = proc.now()
      m[i % 3 + 1]:json("kv", "put", "a", tostring(i))
      assert.equal(tostring(i), m[(i + 1) % 3 + 1]:json("kv", "get", "a").value)
      assert.is_true(proc.now() - began < 3 * cluster.patience)
    end
    -- The remote port itself still lets others in.
    local joiner = t:manager():start()
    joiner:json("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    for _, tcp in ipairs(open) do
      if not tcp:is_closing() then tcp:close() end
    end
    proc.run_for(0.3)
  end

  it("by the thousand, idle or a byte at a time, do not disturb the cluster", cluster.scenario(function(t)
    local m = t:cluster(3)
    thousand(t, m, function(i) return m[i % 3 + 1] end)
  end))

  it("by the thousand on one port do not, either", cluster.scenario(function(t)
    local m = t:cluster(3)
    thousand(t, m, function() return m[1] end)
  end))

  it("with garbage on any port are dropped", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local closed, sent = 0, 0
    for _, port in ipairs { m.raft_port, m.remote_port } do
      for _, bytes in ipairs { "GET / HTTP/1.1\r\n\r\n", ("\0"):rep(65536), ("\255"):rep(65536), "\22\3\1\255\255" ..
        ("\1"):rep(65540) } do
        sent = sent + 1
        local tcp = uv.new_tcp()
        local function close()
          if not tcp:is_closing() then
            tcp:close()
            closed = closed + 1
          end
        end
        tcp:connect("127.0.0.1", port, function(err)
          if err then return close() end
          tcp:read_start(function(read_err, data) if read_err or not data then close() end end)
          tcp:write(bytes, function() end)
        end)
      end
    end
    assert.truthy(proc.pump(20 * cluster.patience, function() return closed == sent end),
      ("%d of %d were closed"):format(closed, sent))
    for _, bytes in ipairs { "\0\0\0\0\r\n\r\n", "GET  \r\n\r\n", "BREW / HTTP/1.1\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 5\r\n" ..
      "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET /v1/kv/%zz HTTP/1.1\r\n\r\n" } do
      local got, over = "", false
      local pipe = uv.new_pipe(false)
      pipe:connect(m.socket, function()
        pipe:read_start(function(_, data)
          if data then got = got .. data else over = true end
          over = over or got:find("\r\n\r\n", 1, true)
        end)
        pipe:write(bytes)
      end)
      assert.truthy(proc.pump(15 * cluster.patience, function() return over end), "no answer")
      pipe:close()
      assert.truthy(got == "" or got:find("^HTTP/1.1 [45]%d%d"), got)
    end
    m:json("kv", "put", "a", "1")
    assert.equal(200, http.call(m.socket, "GET", "/healthz").status)
  end))
end)
