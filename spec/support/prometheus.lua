-- Debian's prometheus and promtool, which `scripts/setup --prometheus` fetches; and its text format.
local uv = require "luv"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local M = {}

local function program(name)
  for _, path in ipairs { ".deps/prometheus/" .. name, "/usr/bin/" .. name } do
    if uv.fs_access(path, "X") then return uv.fs_realpath(path) end
  end
  error(("there is no %s: `scripts/setup --prometheus` fetches it"):format(name), 3)
end

-- Runs promtool: what proc.run gives.
function M.promtool(words, options)
  local argv = { program "promtool" }
  table.move(words, 1, #words, 2, argv)
  return proc.run(argv, options)
end

-- The families of a scrape by name: {type, help, samples = {{name, labels = {}, value}}}. Raises where the text is not
-- as it should be.
function M.parse(text)
  local families, last = {}, nil
  assert(text:sub(-1) == "\n", "the last line has no end")
  for line in text:gmatch("([^\n]*)\n") do
    local kind, name, rest = line:match("^# (%u+) (%S+) (.*)$")
    if kind == "HELP" then
      assert(not families[name], "a second time: " .. line)
      last = { name = name, help = rest, samples = {} }
      families[name] = last
    elseif kind == "TYPE" then
      assert(last.name == name and not last.type, line)
      last.type = rest
    else
      local sample, labels, value = line:match("^([%a_:][%w_:]*)(%b{}) (%S+)$")
      if not sample then
        sample, value = line:match("^([%a_:][%w_:]*) (%S+)$")
      end
      assert(sample and (sample == last.name or sample:gsub("_%l+$", "") == last.name), "out of its place: " .. line)
      local set = {}
      for label, text_of in (labels or ""):gmatch('([%w_]+)="(.-)"[,}]') do set[label] = text_of end
      last.samples[#last.samples + 1] = { name = sample, labels = set,
        value = assert(tonumber((value:gsub("Inf", "1e999"))), line) }
    end
  end
  return families
end

-- The value of the one sample of @families that is called @name and has these labels.
function M.value(families, name, labels)
  local family = families[name] or families[name:gsub("_%l+$", "")] or error("there is no " .. name, 2)
  local found
  for _, sample in ipairs(family.samples) do
    local fits = sample.name == name
    for label, value in pairs(labels or {}) do fits = fits and sample.labels[label] == value end
    if fits then
      assert(not found, "several samples of " .. name .. " fit")
      found = sample.value
    end
  end
  return found
end

local server = {}
server.__index = server

-- A prometheus with the configuration @config (text), whose files are in @folder; it ends with the scenario.
function M.start(folder, config)
  local self = setmetatable({ port = proc.free_port(), log_path = folder .. "/prometheus.log" }, server)
  proc.write_file(folder .. "/prometheus.yml", config)
  local checked = M.promtool { "check", "config", folder .. "/prometheus.yml" }
  assert(checked.code == 0, checked.out .. checked.err)
  self.process = proc.spawn({ program "prometheus", "--config.file=" .. folder .. "/prometheus.yml",
    "--storage.tsdb.path=" .. folder .. "/data", "--web.listen-address=127.0.0.1:" .. self.port, "--log.level=warn" },
    { log = self.log_path, cwd = folder })
  return self
end

function server:stop()
  self.process:kill("sigterm")
  assert(self.process:wait(30), "prometheus does not end on SIGTERM")
end

-- GET of its API: the data of the answer; nil, what it says.
function server:api(path, query)
  local argv = { "curl", "-sS", "--max-time", "10", "-G", ("http://127.0.0.1:%d/api/v1/%s"):format(self.port, path) }
  if query then table.move({ "--data-urlencode", "query=" .. query }, 1, 2, #argv + 1, argv) end
  local result = proc.run(argv)
  local answer = json.decode(result.out)
  if type(answer) == "table" and answer.status == "success" then return answer.data end
  return nil, result.out .. result.err .. (proc.read_file(self.log_path) or "")
end

-- The samples of a query: {labels, value}.
function server:query(text)
  local data, err = self:api("query", text)
  if not data then return nil, err end
  local list = {}
  for i, row in ipairs(data.result) do list[i] = { labels = row.metric, value = tonumber(row.value[2]) } end
  return list
end

return M
