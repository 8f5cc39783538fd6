-- Backup, restore, and the one command for a quorum that is gone for good.
local cluster = require "spec.support.cluster"
local load = require "spec.support.load"
local proc = require "spec.support.proc"

local function put_many(m, from, to, value)
  for i = from, to do
    local answer = assert(m:http("PUT", ("/v1/kv/set/%03d"):format(i), value .. i))
    assert.equal(200, answer.status, answer.body)
  end
end

describe("cluster backup and restore", function()
  it("brings the keys back, and never an older revision", cluster.scenario(function(t)
    local m = t:cluster(3)
    local file = t.root .. "/backup"
    put_many(m[1], 1, 50, "before ")
    m[2]:json("cluster", "backup", file)
    assert.truthy(#proc.read_file(file) > 0)
    local saved = load.keys(m[1], "set/")
    put_many(m[1], 30, 80, "after ")
    m[1]:json("kv", "rm", "set/001")
    local last = m[1]:json("kv", "get", "set/080").mod_revision
    m[3]:json("cluster", "restore", file, "--yes")
    for _, each in ipairs(m) do assert.same(saved, load.keys(each, "set/")) end
    local put = m[1]:json("kv", "put", "set/new", "1")
    assert.is_true(put.revision > last, ("revision %d after %d"):format(put.revision, last))
    -- Members, tokens and identities are those of now, not of the backup.
    assert.equal(3, #m[1]:json("manager", "members"))
    m[2]:crash()
    m[2]:start()
    cluster.wait_for("it to serve what was restored", 10, function()
      local got = m[2]:cli("--json", "kv", "get", "set/050")
      return got.code == 0 and got.json.value == "before 50", got.out .. got.err
    end)
    local joiner = t:manager():start()
    joiner:json("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    assert.equal("before 50", joiner:json("kv", "get", "set/050").value)
  end))

  it("asks before it replaces, and takes nothing that is not a whole backup", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local file = t.root .. "/backup"
    m:json("kv", "put", "a", "1")
    m:json("cluster", "backup", file)
    -- On standard output it is such a file and nothing else. Its first line says when it was made, and its last sums
    -- that up: what stands between is the same.
    local printed = m:cli("--json", "cluster", "backup", "-").out
    local function keys(backup) return backup:match('^{[^\n]*"symphony_backup":1[^\n]*\n(.*\n){"sha256":"%x+"}\n$') end
    assert.truthy(keys(printed), printed)
    assert.equal(keys(proc.read_file(file)), keys(printed))
    proc.write_file(t.root .. "/printed", printed)
    m:json("cluster", "restore", t.root .. "/printed", "--yes")
    m:json("kv", "put", "a", "2")
    assert.not_equal(0, m:cli("cluster", "restore", file).code, "restored without asking")
    local sound = proc.read_file(file)
    for _, bytes in ipairs { "", "hello", sound:sub(1, -2), sound:sub(1, 100), sound .. "x",
      sound:sub(1, 60) .. "\255" .. sound:sub(62) } do
      proc.write_file(file, bytes)
      local failure = m:fails("cluster", "restore", file, "--yes")
      assert.not_equal("internal", failure.code, failure.message)
      assert.equal("2", m:json("kv", "get", "a").value)
    end
    m:fails("cluster", "restore", t.root .. "/absent", "--yes")
    m:fails("cluster", "backup", t.root .. "/no-such-folder/backup")
  end))

  it("takes values as large as they may be, whatever their bytes", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local file = t.root .. "/backup"
    local kinds = { "\0", "x", "\255", "\"", "\1\2" }
    for i = 1, 20 do
      local kind = kinds[i % #kinds + 1]
      assert.equal(200, m:http("PUT", ("/v1/kv/large/%02d"):format(i), kind:rep((1 << 20) // #kind)).status)
    end
    local listed = m:cli("kv", "ls", "large/")
    assert.equal(0, listed.code)
    assert.truthy(listed.err:find("there are more keys", 1, true), listed.err)
    assert.equal("20\n", m:cli("lua", "-e", 'return #state.list("/kv/large/")').out)
    m:json("cluster", "backup", file)
    for i = 1, 20 do m:http("DELETE", ("/v1/kv/large/%02d"):format(i)) end
    assert.not_equal(0, m:cli("cluster", "restore", file, "--force").code, "restored without asking")
    assert.equal(20, m:json("cluster", "restore", file, "--yes").written)
    for i = 1, 20 do
      local kind = kinds[i % #kinds + 1]
      local answer = m:http("GET", ("/v1/kv/large/%02d"):format(i)).json
      local value = answer.value or proc.run({ "base64", "-d" }, { stdin = answer.value_base64 }).out
      assert.is_true(value == kind:rep((1 << 20) // #kind), "value " .. i)
    end
  end))

  it("restores into a new cluster", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local file = t.root .. "/backup"
    put_many(m, 1, 10, "v")
    m:json("cluster", "backup", file)
    local saved = load.keys(m, "set/")
    local fresh = t:manager():start()
    fresh:json("manager", "init")
    local failure = fresh:fails("cluster", "restore", file, "--yes")
    assert.truthy(failure.hint and failure.hint:find("--force", 1, true), failure.message)
    fresh:json("cluster", "restore", file, "--yes", "--force")
    assert.same(saved, load.keys(fresh, "set/"))
    fresh:json("kv", "put", "a", "1")
    assert.equal(1, #fresh:json("manager", "members"))
  end))
end)

describe("manager recover", function()
  it("makes one survivor the only voter, and the others join again", cluster.scenario(function(t)
    local m = t:cluster(3)
    local writers = load.start(m, 4)
    writers:wait_progress(10)
    writers:stop()
    for _, each in ipairs(m) do writers:check(each) end
    m[2]:crash()
    m[3]:crash()
    local asked = m[1]:cli("manager", "recover")
    assert.not_equal(0, asked.code, "recovered without asking")
    m[1]:json("manager", "recover", "--yes")
    cluster.wait_for("the survivor to take writes", 15, function()
      local put = m[1]:cli("kv", "put", "a", "1")
      return put.code == 0, put.err
    end)
    writers:check(m[1])
    assert.is_nil(m[1]:json("kv", "get", "a").stale)
    -- The lost ones come back with their old folders: they must not form a cluster of their own, nor disturb.
    m[2]:start()
    m[3]:start()
    cluster.wait_for("the others to be told", 20, function()
      local get, put = m[2]:cli("--json", "kv", "get", "a"), m[3]:cli("--json", "kv", "put", "a", "2")
      return put.code ~= 0 and (get.code ~= 0 or get.json.stale), get.out .. get.err .. put.out .. put.err
    end)
    assert.equal("1", m[1]:json("kv", "get", "a").value)
    local token = m[1]:json("token", "create", "--role", "manager").token
    cluster.wait_for("the first to leave what it was", 20, function()
      local left = m[2]:cli("manager", "leave", "--force")
      return left.code == 0, left.err
    end)
    m[3]:crash()
    proc.run { "rm", "-rf", "--", m[3].dir }
    m[3]:start()
    for i = 2, 3 do m[i]:json("manager", "join", m[1]:remote(), "--token", token) end
    t:wait_voters(3, m[1])
    for _, each in ipairs(m) do writers:check(each) end
    m[3]:json("kv", "put", "a", "3")
  end))

  it("is refused while there is a quorum", cluster.scenario(function(t)
    local m = t:cluster(3)
    local failure = m[1]:fails("manager", "recover", "--yes")
    assert.is_string(failure.hint or failure.message)
    assert.equal(3, #m[2]:json("manager", "members"))
    m[2]:json("kv", "put", "a", "1")
  end))
end)
