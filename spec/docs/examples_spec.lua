-- What README.md, docs/ and the man pages show is what happens.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- The commands and answers of the blocks of @path that stand behind a line <!-- run -->.
local function examples(path)
  local blocks, block, armed = {}, nil, false
  for line in (assert(proc.read_file(path)) .. "\n"):gmatch("([^\n]*)\n") do
    local code = line:match("^    (.*)$")
    if line == "<!-- run -->" then
      armed = true
    elseif armed and code then
      block = block or {}
      local command = code:match("^%$ (.*)$")
      if command then
        block[#block + 1] = { command = command, answer = "" }
      else
        block[#block].answer = block[#block].answer .. code .. "\n"
      end
    elseif block then
      blocks[#blocks + 1], block, armed = block, nil, false
    end
  end
  return blocks
end

-- The same names and kinds of values; texts equal too, unless the shown one is "...". Numbers are of the moment.
local function alike(shown, got, where)
  assert.equal(type(shown), type(got), where)
  if type(shown) == "string" and shown ~= "..." then assert.equal(shown, got, where) end
  if type(shown) ~= "table" then return end
  for k, v in pairs(shown) do alike(v, got[k], where .. "." .. tostring(k)) end
  for k in pairs(got) do
    if k ~= "hint" then assert.not_nil(shown[k], where .. "." .. tostring(k) .. " is not shown") end
  end
end

local function sources()
  local list = { "README.md" }
  local folder = assert(uv.fs_scandir("docs"))
  for name in uv.fs_scandir_next, folder do
    if name:find("%.md$") then list[#list + 1] = "docs/" .. name end
  end
  return list
end

describe("the documentation", function()
  it("shows what the API does", cluster.scenario(function(t)
    local blocks = examples("docs/api.md")
    assert.is_true(#blocks >= 2)
    for _, block in ipairs(blocks) do
      local m = t:manager():start()
      m:json("manager", "init")
      for _, example in ipairs(block) do
        local result = proc.run({ "sh", "-c", example.command }, { cwd = m.dir })
        assert.equal(0, result.code, example.command .. "\n" .. result.err)
        local shown = assert(json.decode(example.answer))
        alike(shown, json.decode(result.out) or result.out, example.command .. "\n" .. result.out .. "\n answer")
      end
    end
  end))

  -- An offset that leads to free ports, all of them below those that the kernel gives to outgoing connections.
  local function demo_offset()
    for _ = 1, 200 do
      local offset, free = -math.random(5000, 14000), true
      for i = 1, 5 do
        free = free and proc.port_is_free(27241 + i + offset) and proc.port_is_free(37064 + i + offset) and
          proc.port_is_free(15759 + i + offset)
      end
      if free then return offset end
    end
    error("found no free ports for a demo")
  end

  -- Where a demo runs in @folder; it ends with the test, whatever comes of it.
  local function demo_environment(folder)
    local env = { DEMO_DIR = folder .. "/a demo", DEMO_OFFSET = tostring(demo_offset()) }
    finally(function()
      proc.run({ "scripts/demo", "--stop" }, { env = env })
      proc.remove_tree(folder)
    end)
    return env
  end

  it("shows the lines of a watch", cluster.scenario(function(t)
    local shown = {}
    for line in assert(proc.read_file("docs/api.md")):gmatch('\n    ({"type": [^\n]*})') do
      local row = assert(json.decode(line), line)
      shown[row.type] = row
    end
    local m = t:cluster(1)[1]
    local watch = proc.begin { "curl", "-sN", "--unix-socket", m.socket, "http://localhost/v1/watch?prefix=" }
    local function told(type)
      local line = cluster.wait_for("a line of the watch: " .. type, 10, function()
        return watch.out:match('{"type":"' .. type .. '"[^\n]*}'), watch.out .. watch.err
      end)
      alike(shown[type], assert(json.decode(line)), line)
    end
    told "sync"
    m:json("kv", "put", "a", "1")
    told "put"
    m:json("kv", "rm", "a")
    told "delete"
    alike(shown.heartbeat, { type = "heartbeat", revision = shown.sync.revision }, "heartbeat")
    watch.process:kill("sigterm")
    cluster.wait_for("curl to end", 10, watch.ended)
  end))

  it("has a demo that runs, again too, and ends", function()
    local folder = proc.temp_folder()
    local env = demo_environment(folder)
    local function demo(...)
      local result = proc.run({ "scripts/demo", ... }, { timeout = 120, env = env })
      assert.equal(0, result.code, result.out .. result.err)
      return result.out
    end
    for _ = 1, 2 do
      local out = demo()
      assert.truthy(out:find("is gone, and here we are\n", 1, true), out)
      assert.truthy(out:find("\n== Kill a worker.* block%-02 +worker: block +down for .*\n== Start it again\n.*"
        .. " block%-02 +worker: block +ready for "), out)
      assert.truthy(out:find("\n  export SYMPHONY_SOCKET=", 1, true), out)
    end
    assert.truthy(demo("--stop"):find("^5 of"))
    assert.truthy(demo("--stop"):find("^No node of a demo was running"))
    assert.truthy(demo("--help"):find("DEMO_OFFSET=N[^\n]+\n$"))
  end)

  it("has a demo that ends what it began when it is interrupted", function()
    local folder = proc.temp_folder()
    local demo = proc.begin({ "setsid", "scripts/demo" }, { env = demo_environment(folder) }) -- its own process group
    proc.wait_for("two managers", 60, function()
      return uv.fs_stat(folder .. "/a demo/manager-02/control.sock"), demo.out .. demo.err
    end)
    uv.kill(-demo.process.pid, "sigint")
    proc.wait_for("its end", 30, function() return demo.ended(), demo.out .. demo.err end)
    assert.equal(130, demo.process.code, demo.out .. demo.err)
    for _, node in ipairs { "manager-01", "manager-02", "manager-03", "block-01", "block-02" } do
      local lock = folder .. "/a demo/" .. node .. "/lock"
      if uv.fs_stat(lock) then
        assert.equal(0, proc.run({ "flock", "-n", lock, "true" }).code, node .. " runs")
      end
    end
  end)

  it("has a demo that says which ports are taken", function()
    local folder = proc.temp_folder()
    local env = demo_environment(folder)
    local port = 27243 + env.DEMO_OFFSET
    local taker = uv.new_tcp()
    assert(taker:bind("127.0.0.1", port))
    assert(taker:listen(1, function() end))
    local result = proc.run({ "scripts/demo" }, { timeout = 120, env = env })
    taker:close()
    assert.equal(1, result.code, result.out)
    assert.truthy(result.err:find("port " .. port .. ". DEMO_OFFSET=", 1, true), result.err)
  end)

  it("names only commands that there are", cluster.scenario(function(t)
    local socket = t:manager():start("--lua-dir", "contrib").socket
    local known = { ["labels "] = true, ["labels zone"] = true, ["motd set"] = true, ["motd ls"] = true,
      ["motd rm"] = true } -- those of docs/services.md are tried in services_spec.lua
    local seen = 0
    for _, path in ipairs(sources()) do
      for line in assert(proc.read_file(path)):gmatch("[^\n]+") do
        for words in line:gmatch("%f[%w]symphony (%l[%l %-]*)") do
          local first, second = words:match("^(%l+)"), words:match("^%l+ (%l[%l%-]*)") or ""
          local is_command = line:find("^    ") or line:find("`[^`]*symphony " .. words:gsub("%-", "%%-"))
          if is_command then
            seen = seen + 1
            local topic = first .. " " .. second
            if known[topic] == nil then
              local both = cluster.cli(socket, "help", first, second ~= "" and second or nil)
              known[topic] = both.code == 0 or cluster.cli(socket, "help", first).out:find("Usage") and
                not cluster.cli(socket, "help", first).out:find("Commands")
            end
            assert.truthy(known[topic], path .. ": there is no `symphony " .. topic .. "`: " .. line)
          end
        end
      end
    end
    assert.is_true(seen > 10)
  end))

  it("links only to what is there", function()
    for _, path in ipairs(sources()) do
      for target in assert(proc.read_file(path)):gmatch("%]%(([^)#]+)[^)]*%)") do
        if not target:find("^%a+:") then
          local full = (path:match("^(.*/)") or "") .. target
          assert.truthy(uv.fs_stat(full), path .. " links to " .. target)
        end
      end
    end
  end)

  it("lists every option of symphonyd in its man page", function()
    local page = assert(proc.read_file("docs/man/man8/symphonyd.8")):gsub("\\", "")
    for option in proc.run({ cluster.symphonyd, "--help" }).out:gmatch("%-%-([%l-]+)") do
      assert.truthy(page:find("--" .. option, 1, true), "symphonyd(8) lacks --" .. option)
    end
  end)

  it("has man pages without a warning", function()
    for _, page in ipairs { "man1/symphony.1", "man8/symphonyd.8" } do
      local man = { "man", "--warnings", "-l", "-Tutf8", "docs/man/" .. page }
      local result = proc.run(man, { env = { LC_ALL = "C.UTF-8" } })
      assert.equal(0, result.code, result.err)
      assert.equal("", result.err)
    end
  end)
end)
